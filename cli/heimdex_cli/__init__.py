"""The `heimdex` command: a client of the HTTP API, and the embedded system behind `make run` and `make demo`."""
