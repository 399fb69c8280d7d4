"""The routes, thin: decode, one call, encode. `HANDLERS` is all of them."""

from heimdex_gateway.routes import changes, jobs, operations

HANDLERS = (operations.healthz, operations.readyz, jobs.submit_job, jobs.get_job, changes.cancel_job, changes.retry_job)
