"""GET /jobs: filters, pages without repeats or gaps, and errors that name a wrong parameter."""

import asyncio
from typing import Any

import pytest

from tests.support.api import Api
from tests.support.waiting import eventually
from tests.system.api.conftest import Live

ID = "0199f3a2-7c1e-7d3a-9b62-3f1c2b7a9d10"
KEYS = ["id", "status", "stage", "progress", "result", "error", "created_at", "updated_at"]


async def page(api: Api, **query: Any) -> dict[str, Any]:
    response = await api.http.get("/jobs", params=query)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert list(answer) == ["jobs", "next_cursor"]
    return answer


async def pages(api: Api, **query: Any) -> list[list[dict[str, Any]]]:
    """Return all pages of this query."""
    all_pages = [await page(api, **query)]
    while all_pages[-1]["next_cursor"] is not None:
        all_pages.append(await page(api, **query, cursor=all_pages[-1]["next_cursor"]))
    return [one["jobs"] for one in all_pages]


async def mark(api: Api) -> str:
    """Return a time before the jobs of this test, because other tests use the same list."""
    return str((await api.get(await api.submit()))["created_at"])


async def listed(api: Api, count: int, **query: Any) -> list[dict[str, Any]]:
    """Return the jobs of this query once the status store has recorded this many."""

    async def enough() -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = (await page(api, **query, limit=1000))["jobs"]
        return jobs if len(jobs) >= count else []

    return await eventually(enough)


async def test_the_list_shows_each_job_as_get_does_newest_first(http: Api) -> None:
    since = await mark(http)
    submitted = [await http.submit("scripted") for _ in range(5)]
    for job_id in submitted:
        await http.wait_until(job_id, "completed")
    await http.wait_until_listed(submitted, status="completed")
    jobs = await listed(http, 5, created_after=since)
    assert [job["id"] for job in jobs] == list(reversed(submitted))
    for job in jobs:
        assert list(job) == KEYS
        assert job == await http.get(job["id"])


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
async def test_pages_of_any_size_list_every_job_once_and_in_order(http: Api, limit: int) -> None:
    since = await mark(http)
    submitted = await asyncio.gather(*(http.submit() for _ in range(7)))
    whole = await listed(http, 7, created_after=since)
    all_pages = await pages(http, created_after=since, limit=limit)
    assert [len(one) for one in all_pages[:-1]] == [limit] * (len(all_pages) - 1), "only the last page is short"
    assert all_pages[-1], "no page is empty"
    flat = [job for one in all_pages for job in one]
    assert [job["id"] for job in flat] == [job["id"] for job in whole]
    assert {job["id"] for job in flat} == set(submitted)
    places = [(job["created_at"], job["id"]) for job in flat]
    assert places == sorted(places, reverse=True)


async def test_pages_stay_as_they_are_while_jobs_arrive(http: Api) -> None:
    since = await mark(http)
    submitted = [await http.submit() for _ in range(9)]
    await listed(http, 9, created_after=since)
    seen: list[str] = []
    cursor: str | None = None
    arrived = 0
    while True:
        answer = await page(http, created_after=since, limit=2, **({"cursor": cursor} if cursor else {}))
        seen += [job["id"] for job in answer["jobs"]]
        cursor = answer["next_cursor"]
        if cursor is None:
            break
        await asyncio.gather(*(http.submit() for _ in range(3)))
        arrived += 3
        await listed(http, 9 + arrived, created_after=since)
    assert seen == list(reversed(submitted)), "what came later is on no later page, and nothing is told twice"


async def test_a_cursor_returns_the_same_page_however_often_it_is_used(http: Api) -> None:
    since = await mark(http)
    for _ in range(4):
        await http.submit()
    await listed(http, 4, created_after=since)
    first = await page(http, created_after=since, limit=2)
    answers = [await page(http, created_after=since, limit=2, cursor=first["next_cursor"]) for _ in range(2)]
    assert [job["id"] for job in answers[0]["jobs"]] == [job["id"] for job in answers[1]["jobs"]]


@pytest.mark.parametrize("cursor", [f"{'0' * 16}.{ID}", f"{'9' * 16}.{'f' * 8}-ffff-ffff-ffff-{'f' * 12}"])
async def test_the_lowest_and_the_highest_possible_cursor_are_valid(http: Api, cursor: str) -> None:
    job_id = await http.submit()
    await http.wait_until_listed([job_id])
    answer = await page(http, cursor=cursor, limit=1000)
    assert (job_id in [job["id"] for job in answer["jobs"]]) == cursor.startswith("9")


async def test_filters_select_by_status_type_and_time_and_all_must_match(http: Api, live: Live) -> None:
    since = await mark(http)
    live.script.write("preparing", "permanent")
    failed = await http.submit("scripted")
    await http.wait_until(failed, "failed")
    live.script.write("preparing", "ok")
    completed = await http.submit("scripted")
    await http.wait_until(completed, "completed")
    queued = await http.submit("mock_process")
    canceled = await http.submit("mock_process")
    assert (await http.http.post(f"/jobs/{canceled}/cancel")).status_code == 200
    await listed(http, 4, created_after=since)
    await http.wait_until_listed([failed], status="failed")
    await http.wait_until_listed([completed], status="completed")

    async def ids(**query: Any) -> list[str]:
        return [job["id"] for job in (await page(http, created_after=since, **query))["jobs"]]

    assert await ids() == [canceled, queued, completed, failed]
    for status, job_id in (("failed", failed), ("completed", completed), ("pending", queued), ("canceled", canceled)):
        assert await ids(status=status) == [job_id]
    assert await ids(status="processing") == []
    assert await ids(type="scripted") == [completed, failed]
    assert await ids(type="mock_process", status="canceled") == [canceled]
    assert await ids(type="scripted", status="canceled") == []
    edge = (await http.get(queued))["created_at"]
    assert await ids(created_before=edge) == [completed, failed], "the moment itself is not before itself"
    answer = await page(http, created_after=edge)
    assert queued not in [job["id"] for job in answer["jobs"]], "nor after itself"
    assert await ids(created_before=since) == []


async def test_a_time_may_have_any_zone_and_a_space_instead_of_its_plus_sign(http: Api) -> None:
    job_id = await http.submit()
    created = (await http.get(job_id))["created_at"]
    await http.wait_until_listed([job_id])
    hour = int(created[11:13])
    if hour >= 22:
        pytest.skip("the test would have to turn the day as well")
    moved = f"{created[:11]}{hour + 2:02d}{created[13:-1]}"
    for text in (f"{moved}%2B02:00", f"{moved}+02:00", created, created.lower()):
        response = await http.http.get(f"/jobs?created_before={text}&limit=1")
        assert response.status_code == 200, response.text
        assert job_id not in [job["id"] for job in response.json()["jobs"]]


async def test_the_last_page_has_no_cursor_even_if_it_is_full(http: Api) -> None:
    since = await mark(http)
    for _ in range(2):
        await http.submit()
    await listed(http, 2, created_after=since)
    assert (await page(http, created_after=since, limit=2))["next_cursor"] is None
    assert (await page(http, created_before="2000-01-01T00:00:00Z")) == {"jobs": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("limit", value) for value in ("0", "-1", "1001", "10001", "1.5", "", "x", "1e3", "٣", "9" * 400, "1_0")),
        *(("status", value) for value in ("", "done", "FAILED", "failed ", "x" * 5000, "\x00")),
        *(("type", value) for value in ("", "unheard_of", "x" * 5000, "\x00")),
        *(
            (name, value)
            for name in ("created_after", "created_before")
            for value in (
                "",
                "yesterday",
                "2025-10-28",
                "2025-10-28T12:00:00",
                "2025-13-01T00:00:00Z",
                "2025-02-30T00:00:00Z",
                "0001-01-01T00:00:00+14:00",
                "9999-12-31T23:59:59-14:00",
                "1761652800",
                "\x00",
            )
        ),
        *(
            ("cursor", value)
            for value in (
                "",
                "x",
                "é",
                "%00",
                "=" * 5000,
                f"1761652800000000.{ID}\n",
                f" 1761652800000000.{ID}",
                f"1761652800000000.{ID.upper()}",
                f"1761652800000000.{ID[:-1]}",
                f"1761652800000000.{ID.replace('-', '')}",
                f"1761652800000000{ID}",
                f"-761652800000000.{ID}",
                f"17616528000000000.{ID}",
                f"176165280000000٣.{ID}",
                f"1761652800000000.{ID}" * 100,
            )
        ),
        ("colour", "red"),
        ("Limit", "5"),
    ],
)
async def test_an_invalid_parameter_is_422_and_named(http: Api, name: str, value: str) -> None:
    response = await http.http.get("/jobs", params={name: value})
    assert response.status_code == 422, response.text
    body = response.json()
    assert body["field"] == name
    assert repr(name) in body["detail"]
    assert len(body["detail"]) < 400


async def test_a_parameter_that_is_given_twice_is_422_and_named(http: Api) -> None:
    response = await http.http.get("/jobs?limit=5&limit=6")
    assert response.status_code == 422
    assert response.json()["field"] == "limit"
