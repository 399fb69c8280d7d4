"""The marker of an installation, and the clean-up with the clock turned."""

import asyncio
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from heimdex_files import clean_up as clean_ups
from heimdex_files.backends.local import TEMPORARIES
from heimdex_files.blocking import MARKER
from heimdex_files.clean_up import HOUR, CleanUp, Known, clean_up
from heimdex_files.errors import ForeignStore, NotFound
from heimdex_files.installation import claim_async
from heimdex_files.names import file_key, new_token, upload_key, upload_use_key
from heimdex_files.store import FileStore

DAY = 24 * HOUR
OURS, ANOTHER = "11111111-ours", "22222222-another"


class Jobs:
    """A store of jobs that answers what the test says. `asked`: whom it was asked for."""

    def __init__(self, known: Mapping[str, Known] | None = None) -> None:
        self.known = dict(known or {})
        self.asked: list[str] = []
        self.is_down = False

    async def __call__(self, ids: Sequence[str]) -> Mapping[str, Known]:
        if self.is_down:
            raise ConnectionError("it is down")
        self.asked += ids
        return {job_id: self.known[job_id] for job_id in ids if job_id in self.known}


async def save(store: FileStore, job_id: str, name: str = "x") -> str:
    key = file_key("acme", job_id, 1, "extracting", 0, new_token(), name)
    await store.create(key, b"content", content_type="text/plain")
    return key


async def cleaned(store: FileStore, stream: Jobs, database: Jobs, later: float) -> CleanUp:
    return await clean_up(store, OURS, stream, database, lambda: time.time() + later)


async def keys(store: FileStore) -> set[str]:
    return {each.key for each in await store.list()}


async def test_the_first_marks_an_empty_store_and_everyone_compares(url: str) -> None:
    async with FileStore.from_url(url) as first, FileStore.from_url(url) as second, FileStore.from_url(url) as third:
        await claim_async(first, OURS)
        await claim_async(first, OURS)
        await claim_async(second, OURS)
        assert first.blocking.marker() == OURS
        with pytest.raises(ForeignStore, match=f"belongs to installation {OURS}, and this is {ANOTHER}"):
            await claim_async(third, ANOTHER)
        assert await first.list() == []


async def test_of_many_that_find_an_empty_store_one_marks_it(url: str) -> None:
    opened = [FileStore.from_url(url) for _ in range(8)]
    ids = [f"installation-{number}" for number in range(8)]
    results = await asyncio.gather(*map(claim_async, opened, ids), return_exceptions=True)
    marker = opened[0].blocking.marker()
    assert marker in ids
    for store, own, result in zip(opened, ids, results, strict=True):
        assert isinstance(result, ForeignStore if own != marker else type(None))
        await store.close()


async def test_a_store_with_files_and_no_marker_is_nobodys(store: FileStore) -> None:
    await save(store, str(uuid.uuid4()))
    with pytest.raises(ForeignStore, match="is not empty, and has no marker"):
        await claim_async(store, OURS)


async def test_a_folder_of_something_else_is_not_taken(folder_store: FileStore, root: Path) -> None:
    (root / "lost+found").mkdir()  # a new volume has it
    (root / "thesis.txt").touch()
    with pytest.raises(ForeignStore, match="is not empty"):
        await claim_async(folder_store, OURS)
    (root / "thesis.txt").unlink()
    await claim_async(folder_store, OURS)


async def test_a_volume_that_is_unmounted_loses_no_file_and_takes_none(folder_store: FileStore, root: Path) -> None:
    await claim_async(folder_store, OURS)
    key = await save(folder_store, str(uuid.uuid4()))
    away = root.with_name("away")
    root.rename(away)
    root.mkdir()  # the folder on which it was mounted
    for call in (folder_store.head(key), folder_store.open(key), save(folder_store, str(uuid.uuid4()))):
        with pytest.raises(ForeignStore, match="mount its volume again"):
            await call
    assert os.listdir(root) == []
    root.rmdir()
    away.rename(root)
    assert (await folder_store.head(key)).bytes == 7
    with pytest.raises(NotFound):
        await folder_store.head(f"{key}x")


async def test_a_store_that_was_emptied_is_marked_again(store: FileStore) -> None:
    await claim_async(store, OURS)
    await store.delete([MARKER])
    with pytest.raises(ForeignStore):
        await store.head("a/b")
    await claim_async(store, OURS)
    await save(store, str(uuid.uuid4()))


async def test_a_marker_that_cannot_be_read_is_no_lost_file(folder_store: FileStore, root: Path) -> None:
    await claim_async(folder_store, OURS)
    (root / MARKER / "about.json").write_bytes(b"")
    for call in (claim_async(folder_store, OURS), folder_store.head("a/b")):
        with pytest.raises(ForeignStore, match="marker of"):
            await call


async def test_files_of_jobs_that_nobody_knows_go_after_seven_days(store: FileStore) -> None:
    await claim_async(store, OURS)
    in_stream, in_database, unknown = (str(uuid.uuid4()) for _ in range(3))
    wanted = {await save(store, in_stream), await save(store, in_database)}
    lost = {await save(store, unknown, name) for name in ("a", "b")}
    stream, database = Jobs({in_stream: Known()}), Jobs({in_database: Known()})
    report = await cleaned(store, stream, database, 7 * DAY - HOUR)
    assert report == CleanUp()
    assert await keys(store) == wanted | lost
    report = await cleaned(store, stream, database, 7 * DAY + HOUR)
    assert report == CleanUp(jobs_removed=1)
    assert await keys(store) == wanted
    report = await cleaned(store, stream, database, 10_000 * DAY)
    assert report == CleanUp()
    assert await keys(store) == wanted
    assert await asyncio.to_thread(store.blocking.marker) == OURS


async def test_of_a_completed_job_what_its_outputs_do_not_name_goes(store: FileStore) -> None:
    await claim_async(store, OURS)
    job_id = str(uuid.uuid4())
    named, frozen_attempt = await save(store, job_id), await save(store, job_id)
    database = Jobs({job_id: Known(frozenset({named}), needs_uploads=False)})
    assert (await cleaned(store, Jobs(), database, 0)).files_removed == 0
    # While the stream still has it, all is kept: it may not be completed there.
    assert (await cleaned(store, Jobs({job_id: Known()}), database, DAY)).files_removed == 0
    assert (await cleaned(store, Jobs(), database, 2 * HOUR)).files_removed == 1
    assert await keys(store) == {named}
    assert frozen_attempt != named


async def test_uploads_go_after_25_hours_unless_a_job_needs_them(store: FileStore) -> None:
    await claim_async(store, OURS)
    unused, used, finished = (str(uuid.uuid4()) for _ in range(3))
    job_id, done = str(uuid.uuid4()), str(uuid.uuid4())
    for upload_id, user in ((unused, None), (used, job_id), (finished, done)):
        await store.create(upload_key("acme", upload_id), b"film", content_type="video/mp4", name="film.mp4")
        if user:
            await store.create(upload_use_key("acme", upload_id, user), b"", content_type="text/plain")
    stream, database = Jobs(), Jobs({job_id: Known(), done: Known(frozenset(), needs_uploads=False)})
    before = await keys(store)
    assert (await cleaned(store, stream, database, 24 * HOUR)).uploads_removed == 0
    assert await keys(store) == before
    assert (await cleaned(store, stream, database, 26 * HOUR)).uploads_removed == 2
    assert await keys(store) == {upload_key("acme", used), upload_use_key("acme", used, job_id)}
    database.known[job_id] = Known(frozenset(), needs_uploads=False)
    assert (await cleaned(store, stream, database, 26 * HOUR)).uploads_removed == 1
    assert await keys(store) == set()


@pytest.mark.parametrize("which", ["stream", "database"])
async def test_nothing_goes_while_a_question_is_not_answered(store: FileStore, which: str) -> None:
    await claim_async(store, OURS)
    await save(store, str(uuid.uuid4()))
    stream, database = Jobs(), Jobs()
    (stream if which == "stream" else database).is_down = True
    before = await keys(store)
    report = await cleaned(store, stream, database, 10_000 * DAY)
    assert (
        report.stopped
        == f"Nothing more is removed, because the {which} could not be asked which jobs exist: it is down."
    )
    assert report.jobs_removed == 0
    assert await keys(store) == before


@pytest.mark.parametrize("marker", ["missing", "another's"])
async def test_nothing_goes_without_our_marker(store: FileStore, marker: str) -> None:
    if marker == "another's":
        await claim_async(store, ANOTHER)
    await save(store, str(uuid.uuid4()))
    before = await keys(store)
    stream = Jobs()
    report = await cleaned(store, stream, Jobs(), 10_000 * DAY)
    assert report.stopped
    assert "nothing is stored or deleted in it" in report.stopped
    assert stream.asked == []
    assert await keys(store) == before


async def test_nothing_goes_once_the_marker_is_replaced_in_the_middle(store: FileStore) -> None:
    await claim_async(store, OURS)
    await save(store, str(uuid.uuid4()))
    before = await keys(store)

    async def replaced(ids: Sequence[str]) -> Mapping[str, Known]:
        await store.delete([MARKER])
        await store.create(MARKER, ANOTHER.encode(), content_type="text/plain")
        return {}

    report = await clean_up(store, OURS, replaced, Jobs(), lambda: time.time() + 10_000 * DAY)
    assert report.stopped
    assert f"belongs to installation {ANOTHER}" in report.stopped
    assert report.jobs_removed == 0
    assert await keys(store) == before


async def test_many_jobs_in_pages_and_strays_that_are_left_alone(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_ups, "PAGE", 7)
    monkeypatch.setattr(clean_ups, "JOBS_AT_ONCE", 4)
    await claim_async(store, OURS)
    jobs = [str(uuid.uuid4()) for _ in range(12)]
    saved = {job_id: {await save(store, job_id) for _ in range(number % 4 + 1)} for number, job_id in enumerate(jobs)}
    strays = {"zzz/readme", "backup/2026/x"}
    for stray in strays:
        await store.create(stray, b"x", content_type="text/plain")
    known = jobs[::3]
    stream = Jobs({job_id: Known() for job_id in known})
    report = await cleaned(store, stream, Jobs(), 8 * DAY)
    assert report == CleanUp(jobs_removed=8, strays=2)
    assert sorted(stream.asked) == sorted(jobs)
    assert await keys(store) == strays.union(*(saved[job_id] for job_id in known))


async def test_a_round_also_sweeps_the_temporaries(folder_store: FileStore, root: Path) -> None:
    await claim_async(folder_store, OURS)
    left = root / TEMPORARIES / "left"
    left.mkdir()
    (left / "data").write_bytes(b"x")
    for path in (left / "data", left):
        os.utime(path, (0, time.time() - 2 * DAY))
    assert (await cleaned(folder_store, Jobs(), Jobs(), 0)).temporaries_removed == 1
    assert not left.exists()


async def test_a_store_that_is_down_ends_the_round_with_a_sentence(folder_store: FileStore, root: Path) -> None:
    await claim_async(folder_store, OURS)
    shutil.rmtree(root)
    report = await cleaned(folder_store, Jobs(), Jobs(), 10_000 * DAY)
    assert report.stopped
    assert "does not exist" in report.stopped
