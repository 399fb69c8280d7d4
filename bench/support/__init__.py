"""Servers, processes under test, the load generator, and the figures."""
