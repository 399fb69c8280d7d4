"""NATS JetStream as the services use it: connection, streams and consumers, pulling, publishing, settlement.

One concept per file. No code outside this package uses JetStream's protocol.
"""
