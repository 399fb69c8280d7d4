"""The I/O that the three services share: settings, logs, the NATS connection, the topology, pulling, the process.

The only place in this room that touches the outside. It knows no service and no stage.
"""
