"""NATS JetStream as the services use it: the connection, streams and consumers, pulling, publishing, settling.

One concept a file. Nobody else speaks JetStream's protocol.
"""
