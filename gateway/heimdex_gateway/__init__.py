"""The gateway: the HTTP API in front. Accepts jobs into the stream and tells how they are. Imports only contracts."""
