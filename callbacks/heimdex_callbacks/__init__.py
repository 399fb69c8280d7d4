"""Signed webhooks: when a job reaches a terminal state, the job object is POSTed to its `callback_url`.

`url` parses a callback_url; `validation` refuses forbidden ones when a job is submitted; `transport` (with `resolver`)
checks the address of every connection; `metered_stream` limits what a receiver may send to its `response_budget`;
`sender` makes one signed attempt; `dispatcher` takes due callbacks from JetStream; `retry_schedule` and `concurrency`
determine when the next attempt is made. The gateway process runs the dispatcher. This package imports only contracts.
"""
