"""Benchmarks: what a job costs, how many go through, how soon the API answers. Run as `python -m bench.run`."""
