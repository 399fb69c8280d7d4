"""The same work done by other job systems."""
