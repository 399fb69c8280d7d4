"""Ends jobs that no worker knows: HEIMDEX_UNKNOWN_AFTER_SECONDS after the first refusal of a step, the job is `failed`.

A worker that does not know a job's type or stage returns the job to its queue and reports that on core NATS
(`heimdex.refusals.<stage>.<job_id>`). Another worker may know it, or be deployed in time. The first refusal is kept in
Postgres, so that the time continues over a restart of the status store. In front of it is a cache: a further
refusal of the same step writes nothing, however many jobs are refused.

A job is ended only just after a refusal, since then nobody runs it, and as the successor of its newest message: of two
stores, or of a store and a worker, the broker accepts one.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from heimdex_contracts import messages, patches, subjects, tracing
from heimdex_contracts.errors import BrokerUnavailable, Superseded, UnusableMessage
from heimdex_contracts.job_spec import spec_of
from heimdex_contracts.messages import Due, Failed, Follows, JobMessage, Refusal
from heimdex_contracts.runtime.backoff import repeat
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError, Stored
from heimdex_contracts.runtime.jetstream.publisher import Publisher, Refused
from heimdex_contracts.runtime.logs import Logger
from heimdex_status_store import queries
from heimdex_status_store.claims import remove_claim
from heimdex_status_store.database import OUTAGE, Database
from heimdex_status_store.queries import JobState, RefusedStep

_SUBJECT: Final = subjects.refusal_subject("*", "*")
#: Seconds between two rounds, each of which writes new refusals and ends jobs.
ROUND_SECONDS: Final = 0.5
#: New refusals written in one statement, and the maximum number of such statements in one round.
BATCH: Final = 500
BATCHES: Final = 10
#: Rows of a page that is read at the start.
LOADED: Final = 5000
#: Jobs ended in one round; a deploy that stranded 100,000 jobs must not occupy the status store.
MOST_ENDED: Final = 25
#: How old a refusal may be to end its job, in seconds. It is shorter than the delay before any redelivery.
FRESH_SECONDS: Final = 2.5
#: A job that has not been refused for this long is not refused any more. It is longer than the delay between two
#: refusals (150 s).
REFUSED_SECONDS: Final = 300.0
#: Maximum number of cached jobs. A further one is looked up in Postgres at each refusal.
MOST_CACHED: Final = 200_000
#: Seconds between two pages of the clean-up, and rows of a page.
CLEAN_UP_SECONDS: Final = 10.0
PAGE: Final = 500
#: A refused job without a row is not recorded yet. After this time it was deleted.
ORPHANED_AFTER: Final = timedelta(days=7)
PUBLISH_SECONDS: Final = 5.0


class _Refused:
    """A cached job: its refused step, when that was refused for the first time, and last, by the monotonic clock."""

    __slots__ = ("first_at", "last_seen", "stage", "step", "type")

    def __init__(self, step: RefusedStep, last_seen: float) -> None:
        self.step = step.step
        self.type = step.type
        self.stage = step.stage
        self.first_at = step.first_at
        self.last_seen = last_seen


class Refusals:
    """The refused jobs that one status store knows of."""

    def __init__(
        self, broker: Broker, publisher: Publisher, database: Database, unknown_after_seconds: float, log: Logger
    ) -> None:
        self._broker = broker
        self._publisher = publisher
        self._database = database
        self._unknown_after = timedelta(seconds=unknown_after_seconds)
        self._log = log
        self._jobs: dict[str, _Refused] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        #: Refusals of jobs that are not in the cache. They are looked up, and written if they are new.
        self._new: dict[str, RefusedStep] = {}
        #: Refusals, with the time of their arrival, of jobs that have been refused for long enough.
        self._expired: deque[tuple[float, str, int]] = deque(maxlen=4 * MOST_ENDED)
        self._loaded = False
        self._after: str | None = None

    def counts(self) -> list[dict[str, Any]]:
        """Return how many jobs are refused now, by type and stage."""
        return [
            {"type": job_type, "stage": stage, "jobs": count}
            for (job_type, stage), count in sorted(self._counts.items())
        ]

    def is_refused(self, job_id: str, step: int) -> bool:
        """Whether this step of the job waits for a worker that knows it, as far as this store can say."""
        job = self._jobs.get(job_id)
        return not self._loaded or job_id in self._new or (job is not None and job.step >= step)

    async def run(self) -> None:
        """Record refusals and end jobs until cancelled. An outage of NATS or Postgres only delays it."""
        await self._broker.nc.direct_subscribe(_SUBJECT, self._on_refusal)
        cleaned_at = time.monotonic()
        async for _ in repeat(ROUND_SECONDS, ROUND_SECONDS):
            try:
                if not self._loaded:
                    await self._load()
                await self._write()
                await self._end()
                if time.monotonic() - cleaned_at > CLEAN_UP_SECONDS:
                    cleaned_at = time.monotonic()
                    await self._forget_silent(cleaned_at)
                    await self._clean_up()
            except (*OUTAGE, BrokerUnavailable, JetStreamError) as error:
                self._log.debug("refusals_delayed", reason=str(error))
            except Exception:
                self._log.exception("refusals_broken", message="recording refusals failed with a bug; it is repeated")

    def _on_refusal(self, subject: bytes, _: bytes, data: bytes, __: bytes) -> None:
        try:
            refusal = messages.decode_refusal(subject.decode(), data)
        except (UnusableMessage, UnicodeDecodeError):
            return
        now, job = time.monotonic(), self._jobs.get(refusal.job_id)
        if job is None or job.step < refusal.step:
            self._notice(refusal)
            return
        if job.step == refusal.step:
            job.last_seen = now
            if self._is_over(job):
                self._expired.append((now, refusal.job_id, refusal.step))

    def _notice(self, refusal: Refusal) -> None:
        noticed = self._new.get(refusal.job_id)
        if noticed is not None and noticed.step >= refusal.step:
            return
        if noticed is not None or len(self._new) < MOST_CACHED:  # the next refusal of the job is noticed
            at = datetime.now(UTC)
            self._new[refusal.job_id] = RefusedStep(refusal.job_id, refusal.step, refusal.type, refusal.stage, at)

    def _is_over(self, job: _Refused) -> bool:
        return datetime.now(UTC) - job.first_at >= self._unknown_after

    def _cache(self, steps: Iterable[RefusedStep]) -> None:
        now = time.monotonic()
        for step in steps:
            self._forget(step.job_id)
            if len(self._jobs) >= MOST_CACHED:
                self._forget(next(iter(self._jobs)))
            self._jobs[step.job_id] = _Refused(step, now)
            kind = (step.type, step.stage)
            if not self._counts[kind]:
                self._log.warning(
                    "jobs_refused",
                    message="workers do not know the type or the stage of jobs: such a job is failed if no worker "
                    "that knows it takes it in time",
                    type=step.type,
                    stage=step.stage,
                    job_id=step.job_id,
                    unknown_after_seconds=self._unknown_after.total_seconds(),
                )
            self._counts[kind] += 1

    def _forget(self, job_id: str) -> None:
        job = self._jobs.pop(job_id, None)
        if job is not None:
            kind = (job.type, job.stage)
            self._counts[kind] -= 1
            if not self._counts[kind]:
                del self._counts[kind]

    async def _forget_silent(self, now: float) -> None:
        """Forget the jobs that have not been refused for longer than a refusal's delay, and delete their rows.

        No worker has asked for them since, or one that knows them runs them or has returned them with a back-off. The
        next refusal is then their first one.
        """
        silent = [job_id for job_id, job in self._jobs.items() if now - job.last_seen > REFUSED_SECONDS]
        for first in range(0, len(silent), BATCH):
            batch = silent[first : first + BATCH]
            await self._database.run(lambda connection: queries.delete_refusals(connection, batch))  # noqa: B023
            for job_id in batch:
                self._forget(job_id)

    async def _load(self) -> None:
        """Read the refusals of before this process, so that none of these jobs passes for one that is stuck."""
        after: str | None = None
        while len(self._jobs) < MOST_CACHED:
            page = await self._database.run(lambda connection: queries.refused_page(connection, after, LOADED))  # noqa: B023
            self._cache(step for step in page if step.job_id not in self._jobs)
            if len(page) < LOADED:
                break
            after = page[-1].job_id
        self._loaded = True

    async def _write(self) -> None:
        """Write the new refusals, and cache them with the time of the first refusal that Postgres has."""
        for _ in range(BATCHES):
            batch = list(self._new.values())[:BATCH]
            if not batch:
                return
            results = await self._database.run(lambda connection: queries.record_refusals(connection, batch))  # noqa: B023
            self._cache(step for step, gone_on in results if not gone_on)
            for step, gone_on in results:
                if self._new.get(step.job_id, step).step <= step.step:
                    self._new.pop(step.job_id, None)
                if gone_on or step.first_at + self._unknown_after <= datetime.now(UTC):
                    self._expired.append((time.monotonic(), step.job_id, step.step))

    async def _end(self) -> None:
        """End the jobs that have been refused for long enough, or delete their refused messages if they went on."""
        fresh: dict[str, tuple[float, int]] = {}
        while self._expired and len(fresh) < MOST_ENDED:
            at, job_id, step = self._expired.popleft()
            if time.monotonic() - at < FRESH_SECONDS:
                fresh[job_id] = (at, step)
        if not fresh:
            return
        states = await self._database.run(lambda connection: queries.job_states(connection, list(fresh)))
        for job_id, (at, step) in fresh.items():
            # Ending those before it may have taken long: by now, a worker that knows the job may run it.
            if time.monotonic() - at < FRESH_SECONDS:
                await self._end_job(job_id, step, states.get(job_id))

    async def _end_job(self, job_id: str, step: int, state: JobState | None) -> None:
        stored = await self._publisher.last(job_id)
        due = None if stored is None else _due(stored)
        if stored is None or due is None or due.step != step:
            self._forget(job_id)  # it has gone on
            return
        if state is not None and (state.ended or state.step > step):
            # Its successor is recorded, so this message is a leftover: a worker that refuses it does not look further.
            await self._broker.delete_of(subjects.JOBS, subjects.job_filter(job_id), stored.sequence)
            self._forget(job_id)
            return
        job = self._jobs.get(job_id)
        if job is None or job.step != step:
            return
        if state is not None and state.step == step and state.updated_at > job.first_at:
            job.first_at = state.updated_at  # a worker that knows it has run it since
        if not self._is_over(job):
            return
        failed = unknown(due, stored.sequence, job.first_at)
        deadline = asyncio.get_running_loop().time() + PUBLISH_SECONDS
        payload = patches.patched(failed, due, stored.data)
        try:
            await self._publisher.publish(failed, stored.sequence, deadline, payload)
        except Superseded:
            self._forget(job_id)
            return
        except Refused as error:  # the next refusal of the job tries again
            self._log.warning("job_not_failed_yet", job_id=job_id, reason=str(error))
            return
        self._log.warning("unknown_job_failed", job_id=job_id, type=due.type, stage=due.stage, error=failed.error)
        self._forget(job_id)
        # After the terminal event is recorded and has left the stream, its predecessor would be the newest message.
        await self._broker.delete_of(subjects.JOBS, subjects.job_filter(job_id), stored.sequence)
        await remove_claim(self._broker, job_id)

    async def _clean_up(self) -> None:
        """Delete the rows of one page whose jobs have gone on, or do not exist any more."""
        after = self._after
        page = await self._database.run(
            lambda connection: queries.clean_up_refusals(connection, after, ORPHANED_AFTER, PAGE)
        )
        for job_id, step, is_removed in page:
            job = self._jobs.get(job_id)
            if is_removed and job is not None and job.step <= step:
                self._forget(job_id)
        self._after = page[-1][0] if len(page) == PAGE else None


def _due(stored: Stored) -> Due | None:
    try:
        message = messages.decode_job(stored.subject, stored.data)
    except UnusableMessage:
        return None
    return message if isinstance(message, Due) else None


def unknown(due: Due, sequence: int, first_at: datetime) -> Failed:
    """Return the terminal event of a job that no worker knows. sequence: that of `due`."""
    refused_since = msgspec.to_builtins(first_at.replace(microsecond=0))
    return Failed(
        **spec_of(due, JobMessage),
        step=due.step + 1,
        run=due.run,
        at=max(messages.now(), due.at),
        progress=due.progress,
        not_before=due.not_before,
        finished=due.finished,
        follows=Follows(sequence),
        trace=tracing.child(due.trace),
        stage=due.stage,
        attempt=due.attempts,
        error=(
            f"{due.stage} did not run: no worker knows the job type {due.type!r} with this stage (refused since "
            f"{refused_since}). Start workers of {due.stage} whose HEIMDEX_PIPELINES declare the type, then retry the "
            "job."
        ),
    )
