"""The routes, thin: decode, one call, encode. `HANDLERS` is all of them."""

from heimdex_gateway.routes import changes, jobs, operations

HANDLERS = (
    operations.healthz,
    operations.readyz,
    operations.jobs_options,
    jobs.submit_job,
    jobs.submit_jobs,
    jobs.list_jobs,
    jobs.get_job,
    jobs.list_events,
    changes.cancel_job,
    changes.retry_job,
    changes.retry_jobs,
)
