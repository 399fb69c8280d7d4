"""What the tests share: servers, the real services as processes, an HTTP client, and waiting for conditions."""
