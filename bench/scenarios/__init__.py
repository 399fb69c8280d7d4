"""Benchmarks of the whole system, each of which answers one question."""
