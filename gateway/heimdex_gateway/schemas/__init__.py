"""The bodies and parameters of HTTP requests and responses."""
