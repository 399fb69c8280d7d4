"""The gateway: the HTTP API. It accepts jobs into the stream and reports their state. Imports contracts only."""
