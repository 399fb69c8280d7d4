"""The I/O that the services share: settings, logs, process start and stop, the NATS micro service, and `jetstream`.

No other module of this package does I/O. This one depends on no particular service or stage.
"""
