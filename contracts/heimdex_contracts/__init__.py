"""The code that all services share: messages, subjects, pipelines, the order of events, and how a delivery is settled.

The modules outside `runtime` are pure: they import only the standard library and msgspec. All I/O of this package is in
`runtime`, which the services share. This package imports no other package of the project.
"""
