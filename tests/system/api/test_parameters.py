"""An unknown parameter is refused, not ignored: a caller who misspells one must notice it."""

import pytest

from tests.support.api import Api

JOB = "/jobs/01990000-0000-7000-8000-000000000001"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/jobs"),
        ("POST", "/jobs/batch"),
        ("POST", "/jobs/retry"),
        ("POST", f"{JOB}/cancel"),
        ("POST", f"{JOB}/retry"),
        ("GET", "/jobs"),
        ("GET", JOB),
        ("GET", f"{JOB}/events"),
    ],
)
async def test_an_unknown_parameter_is_422_and_named(http: Api, method: str, path: str) -> None:
    response = await http.http.request(
        method, f"{path}?delay_secods=60", json={"type": "mock_process"} if method == "POST" else None
    )
    assert (response.status_code, response.json()["field"]) == (422, "delay_secods")
