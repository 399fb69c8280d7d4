"""What every room may know: messages, subjects, pipelines, the order of events, and how a delivery ends.

The modules beside `runtime` are pure: they import the standard library and msgspec only. `runtime` is the one
place here that does I/O; the three services share it. This room imports no other room.
"""
