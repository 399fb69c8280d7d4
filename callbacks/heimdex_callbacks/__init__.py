"""Callbacks: a job's end is POSTed, signed, to the `callback_url` that it was submitted with.

`url` reads one; `validation` refuses what may not be called when a job is submitted; `transport` (with `resolver`)
checks every connection; `metered_stream` holds what a receiver sends to its `response_budget`; `sender` makes one
signed attempt; `dispatcher` takes the work from JetStream; `retry_schedule` and `concurrency` say when the next attempt
is. The gateway runs it. Imports contracts only.
"""
