"""Requests that change jobs."""

from tests.support.api import Api
from tests.support.services import System


async def cancel(api: Api, job_id: str, status: int = 200) -> dict[str, object]:
    """Cancel this job. The response must have this status; returns its body."""
    response = await api.http.post(f"/jobs/{job_id}/cancel")
    assert response.status_code == status, response.text
    body: dict[str, object] = response.json()
    return body


async def retry(api: Api, job_id: str, query: str = "", status: int = 200) -> dict[str, object]:
    """Retry this job. The response must have this status; returns its body. query: with its question mark."""
    response = await api.http.post(f"/jobs/{job_id}/retry{query}")
    assert response.status_code == status, response.text
    body: dict[str, object] = response.json()
    return body


def interrupted(system: System, stage: str, job_id: str) -> bool:
    """Whether a replica of the stage has interrupted the job."""
    return any(service.logged("delivery_dropped", job_id=job_id) for service in system.all(stage))
