"""Shared parts of the benchmarks: servers, processes under test, the load generator, and the figures."""
