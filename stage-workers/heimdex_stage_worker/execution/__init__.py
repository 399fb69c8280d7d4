"""Runs one attempt of a stage: on the event loop, in a thread, or in a separate process; and decides between them."""
