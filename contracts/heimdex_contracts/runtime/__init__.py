"""The I/O that the services share: settings, logs, the life of a process, its `nats micro` service, and `jetstream`.

The only place in this package that touches the outside. It knows no service and no stage.
"""
