"""What a clean-up may remove, decided from a listing, two answers and the time."""

import random
import uuid

import pytest

from heimdex_files.clean_up import (
    HOUR,
    JobFiles,
    Known,
    UploadFiles,
    grouped,
    merged,
    removable_of_job,
    removable_of_upload,
)
from heimdex_files.names import file_key, new_token, upload_key, upload_use_key
from heimdex_files.stored import Listed

NOW = 1_800_000_000.0
DAY = 24 * HOUR
JOB, OTHER = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
UPLOAD = str(uuid.UUID(int=3))


def job_file(name: str, age: float, job_id: str = JOB) -> Listed:
    return Listed(file_key("acme", job_id, 1, "extracting", 0, "t" * 24, name), NOW - age, 10, True)


def upload(age: float) -> Listed:
    return Listed(upload_key("acme", UPLOAD), NOW - age, 10, True)


def use(age: float) -> Listed:
    return Listed(upload_use_key("acme", UPLOAD, JOB), NOW - age, 0, True)


@pytest.mark.parametrize(
    ("ages", "known", "removed"),
    [
        # unknown: the whole prefix, once its newest file is older than 7 days
        ([8 * DAY], None, "prefix"),
        ([8 * DAY, 7 * DAY + 1], None, "prefix"),
        ([8 * DAY, 7 * DAY - 1], None, "nothing"),
        ([0], None, "nothing"),
        ([-DAY], None, "nothing"),
        # known and may run again: nothing, however old
        ([900 * DAY], Known(), "nothing"),
        ([900 * DAY], Known(keeps=None, needs_uploads=False), "nothing"),
        # known, and keeps the first only
        ([900 * DAY, HOUR + 1], Known(frozenset({job_file("0", 0).key})), "the second"),
        ([900 * DAY, HOUR - 1], Known(frozenset({job_file("0", 0).key})), "nothing"),
    ],
)
def test_files_of_a_job(ages: list[float], known: Known | None, removed: str) -> None:
    files = [job_file(str(number), age) for number, age in enumerate(ages)]
    expected = {"prefix": [f"acme/{JOB}"], "nothing": [], "the second": [each.key for each in files[1:]]}[removed]
    assert removable_of_job(JobFiles("acme", JOB, files), known, NOW) == expected


@pytest.mark.parametrize(
    ("upload_age", "use_age", "known", "is_removed"),
    [
        (25 * HOUR + 1, None, {}, True),
        (25 * HOUR - 1, None, {}, False),
        (900 * DAY, 2 * HOUR, {JOB: Known()}, False),
        (900 * DAY, 2 * HOUR, {JOB: Known(needs_uploads=False)}, True),
        (900 * DAY, 2 * HOUR, {}, True),
        (900 * DAY, 2 * HOUR, {OTHER: Known()}, True),
        (900 * DAY, HOUR - 1, {}, False),  # its job may be on its way
    ],
)
def test_uploads(upload_age: float, use_age: float | None, known: dict[str, Known], is_removed: bool) -> None:
    uses = {} if use_age is None else {JOB: use(use_age)}
    removed = removable_of_upload(UploadFiles("acme", UPLOAD, upload(upload_age), uses), known, NOW)
    # The upload goes first: a kill between the two leaves a marker, which the next round finds.
    assert removed == ([upload(0).key, *(each.key for each in uses.values())] if is_removed else [])


def test_markers_without_an_upload_go_too() -> None:
    left = UploadFiles("acme", UPLOAD, None, {JOB: use(2 * HOUR)})
    assert removable_of_upload(left, {}, NOW) == [use(0).key]
    assert removable_of_upload(left, {JOB: Known()}, NOW) == []


def test_what_either_store_keeps_is_kept() -> None:
    some, all_of_it = Known(frozenset({"a"}), needs_uploads=False), Known()
    assert merged({JOB: some}, {JOB: Known(frozenset({"b"}), needs_uploads=False)})[JOB] == Known(
        frozenset({"a", "b"}), needs_uploads=False
    )
    for first, second in ((some, all_of_it), (all_of_it, some)):
        assert merged({JOB: first}, {JOB: second})[JOB] == all_of_it
    assert merged({JOB: some}, {OTHER: all_of_it}) == {JOB: some, OTHER: all_of_it}


def test_a_listing_is_grouped_by_job_and_by_upload() -> None:
    strays = [Listed(key, NOW, 1, True) for key in ("acme/readme", "x", f"acme/{JOB}")]
    below = Listed(f"acme/{JOB}/logs/x", NOW, 1, False)
    listing = [job_file("a", 0), job_file("b", 0), below, job_file("a", 0, OTHER), use(0), upload(0)]
    listing += strays
    groups = list(grouped(listing))
    assert [group for group in groups if isinstance(group, JobFiles)] == [
        JobFiles("acme", JOB, listing[:3]),
        JobFiles("acme", OTHER, listing[3:4]),
    ]
    assert [group for group in groups if isinstance(group, UploadFiles)] == [
        UploadFiles("acme", UPLOAD, upload(0), {JOB: use(0)})
    ]
    assert [group for group in groups if isinstance(group, Listed)] == strays


def test_grouping_loses_nothing_of_a_long_listing() -> None:
    jobs = [str(uuid.UUID(int=number)) for number in range(50)]
    listing = [
        Listed(file_key(tenant, job_id, 1, "s", 0, new_token(), "x"), NOW, 1, True)
        for tenant in ("acme", "uploads")
        for job_id in jobs
        for _ in range(random.Random(job_id).randint(1, 4))
    ]
    groups = [group for group in grouped(listing) if isinstance(group, JobFiles)]
    assert [each for group in groups for each in group.files] == listing
    assert len(groups) == 100
