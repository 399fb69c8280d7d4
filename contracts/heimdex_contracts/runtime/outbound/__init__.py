"""Requests to addresses that callers choose: the guard against private ones."""
