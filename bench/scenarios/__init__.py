"""One question each, on the whole system."""
