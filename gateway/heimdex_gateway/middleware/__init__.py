"""Middleware in front of every route: API keys, the rate limit, CORS, and the request counts for `nats micro`."""
