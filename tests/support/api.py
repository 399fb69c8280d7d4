"""A small client of the HTTP API for the tests."""

from collections.abc import Iterable
from typing import Any

import httpx

from tests.support.waiting import PATIENCE_SECONDS, eventually

TERMINAL = {"completed", "failed", "canceled"}


class Api:
    """A client of one gateway. `http` is the underlying HTTP client, for other requests. key: "" means no API key."""

    def __init__(self, url: str, key: str = "") -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.AsyncClient(base_url=url, headers=headers, timeout=20, trust_env=False)

    async def close(self) -> None:
        await self.http.aclose()

    async def __aenter__(self) -> "Api":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def submit(self, type: str = "mock_process", headers: dict[str, str] | None = None, **fields: Any) -> str:
        """Submit a job, which must be accepted, and return its id."""
        response = await self.http.post("/jobs", json={"type": type, **fields}, headers=headers)
        assert response.status_code == 202, f"POST /jobs returned {response.status_code} {response.text}"
        job_id = response.json()["job_id"]
        assert isinstance(job_id, str)
        return job_id

    async def get(self, job_id: str) -> dict[str, Any]:
        """Return the job, which must exist."""
        response = await self.http.get(f"/jobs/{job_id}")
        assert response.status_code == 200, f"GET /jobs/{job_id} returned {response.status_code} {response.text}"
        job: dict[str, Any] = response.json()
        return job

    async def history(self, job_id: str) -> list[dict[str, Any]]:
        """Return the entries of GET /jobs/{id}/events."""
        response = await self.http.get(f"/jobs/{job_id}/events")
        assert response.status_code == 200, response.text
        return list(response.json()["events"])

    async def wait_until(self, job_id: str, *statuses: str, timeout: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Wait until the job has one of these statuses, and return it. Another terminal state fails at once."""
        seen: dict[str, Any] = {}

        async def reached() -> bool:
            seen.clear()
            seen.update(await self.get(job_id))
            return seen["status"] in statuses or seen["status"] in TERMINAL

        await eventually(reached, timeout, lambda: f"the job {job_id} is {' or '.join(statuses)}; it is {seen}")
        assert seen["status"] in statuses, f"the job is not {' or '.join(statuses)}, but {seen}"
        return dict(seen)

    async def wait_until_listed(self, job_ids: Iterable[str], timeout: float = PATIENCE_SECONDS, **wanted: Any) -> None:
        """Wait until `GET /jobs` returns all of these jobs, each with these fields.

        GET by id is ahead of the list, which is read only from Postgres: the status store writes that a moment later.
        """
        query = {"limit": 1000} | ({"status": wanted["status"]} if "status" in wanted else {})
        missing = set(job_ids)

        async def shown() -> bool:
            response = await self.http.get("/jobs", params=query)
            assert response.status_code == 200, f"GET /jobs returned {response.status_code} {response.text}"
            missing.difference_update(job["id"] for job in response.json()["jobs"] if wanted.items() <= job.items())
            return not missing

        await eventually(shown, timeout, lambda: f"GET /jobs returns {missing} with {wanted}")

    async def is_up(self) -> bool:
        """Whether /healthz returns 200."""
        try:
            return (await self.http.get("/healthz")).status_code == 200
        except httpx.HTTPError:
            return False
