"""What stands in front of every route: API keys, the rate limit, CORS, and the counts that `nats micro` shows."""
