"""Benchmarks: the cost of a job, the throughput, and the latency of the API. Run them with `python -m bench.run`."""
