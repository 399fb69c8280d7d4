"""The route that lists the job types."""

from litestar import Response, get

from heimdex_gateway.dependencies import gateway_of
from heimdex_gateway.openapi import responses
from heimdex_gateway.routes.request import AnyRequest, check_query, encoded
from heimdex_gateway.schemas import job_types


@get(
    "/job-types",
    operation_id="listJobTypes",
    summary="List the job types",
    tags=["jobs"],
    sync_to_thread=False,
    responses=responses.JOB_TYPES_ANSWERS,
)
def list_job_types(request: AnyRequest) -> Response[bytes]:
    """Returns the types that `POST /jobs` takes, with their stages and the JSON schema of their parameters."""
    check_query(request)
    return encoded(job_types.job_types(gateway_of(request).pipelines))
