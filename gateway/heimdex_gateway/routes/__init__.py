"""The routes. Each decodes the request, calls one use case, and encodes the response. `HANDLERS` lists them all."""

from heimdex_gateway.routes import actions, events, health, jobs

HANDLERS = (
    health.healthz,
    health.readyz,
    health.jobs_options,
    jobs.submit_job,
    jobs.submit_jobs,
    jobs.list_jobs,
    jobs.get_job,
    events.list_events,
    actions.cancel_job,
    actions.retry_job,
    actions.retry_jobs,
)
