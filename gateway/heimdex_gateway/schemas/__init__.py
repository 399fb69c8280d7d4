"""The bodies and the parameters of HTTP requests and answers."""
