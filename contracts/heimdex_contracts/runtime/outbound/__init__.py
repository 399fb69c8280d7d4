"""Guards outbound requests to URLs that callers choose against private addresses."""
