"""Removes files that nothing needs any more, and never one that may still be needed.

The decisions are pure functions of a listing, of what the two stores of jobs answer, and of the time:

- A prefix `<tenant>/<job_id>` goes when everything below it is older than 7 days and neither the stream nor the
  database knows the job.
- Of a job that is known, those files go that its answer does not keep, once they are older than an hour: what attempts
  left that lost, failed or were frozen.
- An upload goes from 25 h on, when no job with a marker needs it. A marker that is younger than an hour counts as
  needed: its job may be on its way. A caller's reference ends after 24 h, so no new marker can arrive.

Nothing is removed while the marker of the installation is missing or another's, or while a question cannot be answered.
Keys of another form are counted and left alone.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from heimdex_files import installation as installations
from heimdex_files.errors import Unavailable
from heimdex_files.names import Upload, UploadUse, job_of, job_prefix, parse, upload_key, upload_use_key
from heimdex_files.store import FileStore
from heimdex_files.stored import Listed

HOUR: Final = 3600.0
#: The age from which the files of a job that nobody knows are removed.
UNKNOWN_JOB_SECONDS: Final = 7 * 24 * HOUR
#: The age from which an upload is removed: an hour after its reference has expired.
UPLOAD_SECONDS: Final = 25 * HOUR
#: The age below which a marker of an upload, or a file that a job does not name, may belong to what happens just now.
SETTLED_SECONDS: Final = HOUR
#: Keys in a page of the listing, and jobs in a question.
PAGE: Final = 1_000
JOBS_AT_ONCE: Final = 200


class Known(NamedTuple):
    """What a store of jobs knows of one job.

    keeps: the keys of its files that are kept; None: all. A job that may run again keeps all. A completed one keeps
    what its outputs name and the logs; a failed or canceled one keeps none once its time for a retry is over.
    needs_uploads: it may still read the uploads that it was submitted with.
    """

    keeps: frozenset[str] | None = None
    needs_uploads: bool = True


#: Asks a store of jobs for these ids; a job that is not in the answer is unknown to it. It raises if it cannot answer
#: for all of them.
Ask = Callable[[Sequence[str]], Awaitable[Mapping[str, Known]]]


@dataclass
class JobFiles:
    """The files of a job, as listed."""

    tenant: str
    job_id: str
    files: list[Listed] = field(default_factory=list)


@dataclass
class UploadFiles:
    """An upload and the markers of its jobs, as listed. upload: None when only markers are left."""

    tenant: str
    upload_id: str
    upload: Listed | None = None
    uses: dict[str, Listed] = field(default_factory=dict)


@dataclass
class CleanUp:
    """What a clean-up did."""

    jobs_removed: int = 0
    #: Files that a known job does not keep.
    files_removed: int = 0
    uploads_removed: int = 0
    temporaries_removed: int = 0
    #: Keys that have no form of ours.
    strays: int = 0
    #: A sentence that says why nothing was removed, or nothing more; None after a whole round.
    stopped: str | None = None


def removable_of_job(job: JobFiles, known: Known | None, now: float) -> list[str]:
    """Return the keys to delete of a job: its whole prefix, single files, or none. `known`: None if nobody knows it."""
    if known is None:
        newest = max(file.changed_at for file in job.files)
        return [job_prefix(job.tenant, job.job_id)] if now - newest > UNKNOWN_JOB_SECONDS else []
    if known.keeps is None:
        return []
    return [file.key for file in job.files if file.key not in known.keeps and now - file.changed_at > SETTLED_SECONDS]


def removable_of_upload(files: UploadFiles, known: Mapping[str, Known], now: float) -> list[str]:
    """Return the keys to delete of an upload, the upload before its markers; or none.

    known: what is known of the jobs with a marker; a job that is missing is unknown.
    """
    if files.upload and now - files.upload.changed_at <= UPLOAD_SECONDS:
        return []
    for job_id, use in files.uses.items():
        if now - use.changed_at <= SETTLED_SECONDS or (job_id in known and known[job_id].needs_uploads):
            return []
    uses = [upload_use_key(files.tenant, files.upload_id, job_id) for job_id in files.uses]
    return [*([upload_key(files.tenant, files.upload_id)] if files.upload else []), *uses]


def merged(first: Mapping[str, Known], second: Mapping[str, Known]) -> dict[str, Known]:
    """Combine two answers: what either of them keeps or needs is kept."""
    both = dict(first)
    for job_id, known in second.items():
        other = both.get(job_id)
        if other is not None:
            keeps = None if known.keeps is None or other.keeps is None else known.keeps | other.keeps
            known = Known(keeps, known.needs_uploads or other.needs_uploads)
        both[job_id] = known
    return both


def grouped(listing: Iterable[Listed]) -> Iterator[JobFiles | UploadFiles | Listed]:
    """Group a listing, or a part of one, by job and by upload. A key without a form of ours is yielded as it is.

    The listing is in order, so the files of a job follow each other, as an upload follows its markers. What is below a
    job's prefix is a file of that job, whatever its form.
    """
    group: JobFiles | UploadFiles | None = None
    for listed in listing:
        parts = parse(listed.key)
        if isinstance(parts, Upload | UploadUse):
            if not (isinstance(group, UploadFiles) and (group.tenant, group.upload_id) == parts[:2]):
                if group:
                    yield group
                group = UploadFiles(parts.tenant, parts.upload_id)
            if isinstance(parts, UploadUse):
                group.uses[parts.job_id] = listed
            else:
                group.upload = listed
        elif job := job_of(listed.key):
            if not (isinstance(group, JobFiles) and (group.tenant, group.job_id) == job):
                if group:
                    yield group
                group = JobFiles(*job)
            group.files.append(listed)
        else:
            yield listed
    if group:
        yield group


async def clean_up(
    store: FileStore, installation: str, ask_stream: Ask, ask_database: Ask, now: Callable[[], float]
) -> CleanUp:
    """Go through the whole store once, and delete what may go. Repeat it every few hours.

    installation: the id of this installation. now: seconds since 1970, such as `time.time`. The stream is asked first:
    a job that has left it by then is in the database. An error of either question ends the round; it is in `stopped`.
    Raises nothing that a store that is down, or is not ours, can cause.
    """
    report = CleanUp()
    try:
        await installations.claim_async(store, installation)
        report.temporaries_removed = await store.sweep()
        groups: list[JobFiles | UploadFiles] = []
        async for group in _groups(store):
            if isinstance(group, Listed):
                report.strays += 1
                continue
            groups.append(group)
            if len(groups) >= JOBS_AT_ONCE:
                await _remove(store, groups, ask_stream, ask_database, now(), report)
                groups = []
        await _remove(store, groups, ask_stream, ask_database, now(), report)
    except Unavailable as error:
        report.stopped = str(error)
    except _Unanswered as error:
        report.stopped = f"Nothing more is removed, because {error}."
    return report


class _Unanswered(Exception):
    """A question about jobs was not answered. The text completes a sentence after "because"."""


async def _groups(store: FileStore) -> AsyncIterator[JobFiles | UploadFiles | Listed]:
    """List the store by pages. A group that a page's end may cut is completed with the next page."""
    after: str | None = None
    rest: list[Listed] = []
    while True:
        page = await store.list("", after, PAGE)
        whole = len(page) < PAGE
        listing = rest + page
        groups = list(grouped(listing))
        rest = []
        if not whole:
            after = page[-1].key
            last = next((each for each in reversed(groups) if not isinstance(each, Listed)), None)
            if last is not None:
                groups.remove(last)
                rest = _listed_of(last)
        for group in groups:
            yield group
        if whole:
            return


def _listed_of(group: JobFiles | UploadFiles) -> list[Listed]:
    if isinstance(group, JobFiles):
        return group.files
    return [*group.uses.values(), *([group.upload] if group.upload else [])]


async def _remove(
    store: FileStore,
    groups: Sequence[JobFiles | UploadFiles],
    ask_stream: Ask,
    ask_database: Ask,
    now: float,
    report: CleanUp,
) -> None:
    """Ask for the jobs of these groups, and delete what may go."""
    jobs = {group.job_id for group in groups if isinstance(group, JobFiles)}
    jobs.update(*(group.uses for group in groups if isinstance(group, UploadFiles)))
    known: dict[str, Known] = {}
    ids = iter(sorted(jobs))
    while some := list(islice(ids, JOBS_AT_ONCE)):
        in_stream = await _answer(ask_stream, some, "the stream")
        known.update(merged(in_stream, await _answer(ask_database, some, "the database")))
    for group in groups:
        if isinstance(group, JobFiles):
            job = known.get(group.job_id)
            keys = removable_of_job(group, job, now)
        else:
            keys = removable_of_upload(group, known, now)
        if not keys:
            continue
        await store.run(store.blocking.check_marker)
        await store.delete(keys)
        if isinstance(group, UploadFiles):
            report.uploads_removed += 1
        elif job is None:
            report.jobs_removed += 1
        else:
            report.files_removed += len(keys)


async def _answer(ask: Ask, ids: Sequence[str], store: str) -> Mapping[str, Known]:
    try:
        return await ask(ids)
    except Exception as error:
        raise _Unanswered(f"{store} could not be asked which jobs exist: {error}") from error
