"""The routes. Each decodes the request, calls one use case, and encodes the response."""
