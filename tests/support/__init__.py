"""Shared parts of the tests: servers, the real services as processes, an HTTP client, and waiting for conditions."""
