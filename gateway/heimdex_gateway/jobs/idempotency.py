"""Idempotency keys: the same key and body give the same job or batch, for 24 hours, across gateways and restarts.

A key lives in a bucket of JetStream. Whoever creates it has made the jobs' ids; everybody else answers with those ids.
It is created before the jobs are published, so a crash between the two leaves a key whose jobs are nowhere: a repeat
then publishes them, under the same ids, which the broker accepts once. A batch is stored whole or not at all: where its
first job is, all are.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError
from heimdex_contracts.messages import Due
from heimdex_contracts.runtime.backoff import attempts
from heimdex_contracts.runtime.jetstream.connection import BEING_STORED, WRONG_LAST_SEQUENCE, Broker, JetStreamError
from heimdex_contracts.runtime.jetstream.publisher import Publisher, Refused
from heimdex_gateway.jobs.repository import Database, DatabaseUnavailable
from heimdex_gateway.jobs.status import BOTH_NEEDED, StateUnavailable
from heimdex_gateway.jobs.submit import Submit

#: How long a repeat waits for the first to be stored before it stores the job itself.
FIRST_WITHIN_SECONDS: Final = 1.5
#: How long a key that cannot be created or read now is tried again.
CREATED_WITHIN_SECONDS: Final = 2.0
#: The server's duplicate window, less some: as long as it lasts, publishing again cannot run a job twice, unless the
#: server was restarted. So Postgres is asked first all the same.
SURELY_REMEMBERED_SECONDS: Final = 100.0


class KeyReused(HeimdexError):
    """The key was used with another body."""


class IdempotencyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the bucket keeps of a key. `others`: ids of a batch's further jobs, whose bodies a repeat has too.

    stored: they are known to be in the stream, or to have been.
    """

    job: Due
    body: str
    others: list[str] = []
    stored: bool = False

    @property
    def ids(self) -> list[str]:
        """Of all its jobs, in order."""
        return [self.job.job_id, *self.others]


class IdempotentSubmit:
    """The use case: submits jobs once for each key."""

    def __init__(self, broker: Broker, publisher: Publisher, database: Database, submit: Submit) -> None:
        self._broker = broker
        self._publisher = publisher
        self._database = database
        self._submit = submit

    async def submit(self, key: str, body: str, jobs: Sequence[Due]) -> list[str]:
        """Submit these jobs, or find those that the key made; returns their ids. `body`: the digest of the request's.

        Raises KeyReused, StateUnavailable where it cannot be determined whether the jobs of a key are there, and what
        Submit.submit raises.
        """
        await self._submit.check_streams()
        subject = subjects.key_subject(_of_tenant(key, jobs[0].tenant))
        new = IdempotencyRecord(job=jobs[0], body=body, others=[job.job_id for job in jobs[1:]])
        record = await self._create_or_read(subject, new)
        if record.job.job_id == new.job.job_id:
            # Ours: created now, or by an earlier publish of this very call.
            await self._submit.submit(jobs)
            await self._mark(subject, new)
            return new.ids
        if record.body != body:
            raise KeyReused("This Idempotency-Key was used with another body; use another key.")
        if not record.stored and not await self._appears(subject, record.job.job_id):
            # It may have run and left the stream, which only Postgres knows.
            try:
                if await self._database.job(record.job.job_id, record.job.tenant) is not None:
                    return record.ids
            except DatabaseUnavailable:
                age = (messages.now() - record.job.created_at).total_seconds()
                if age > SURELY_REMEMBERED_SECONDS:
                    raise StateUnavailable(BOTH_NEEDED) from None
            others = zip(jobs[1:], record.others, strict=True)
            repeated = [msgspec.structs.replace(job, job_id=job_id) for job, job_id in others]
            await self._submit.submit([record.job, *repeated])
            await self._mark(subject, record)
        return record.ids

    async def _create_or_read(self, subject: str, new: IdempotencyRecord) -> IdempotencyRecord:
        """`new`, if we are the first with this key; else what is kept of it. Raises BrokerUnavailable or Refused."""
        until = asyncio.get_running_loop().time() + CREATED_WITHIN_SECONDS
        failure = BrokerUnavailable("the key could not be stored")
        async for _ in attempts(0.05, 0.05, until=until):
            try:
                ack = await self._broker.publish(
                    subject,
                    msgspec.json.encode(new),
                    {
                        "Nats-Expected-Last-Subject-Sequence": "0",
                        "Nats-Msg-Id": f"key.{new.job.job_id}",
                        "traceparent": new.job.trace or "",
                    },
                    timeout=1.0,
                )
                if ack.error is None:
                    return new
                if ack.error.err_code in WRONG_LAST_SEQUENCE:
                    # Where it cannot be read, another's key is being stored; or it expired this very moment.
                    return await self._read(subject)
                if ack.error.err_code != BEING_STORED:
                    raise Refused(f"JetStream refused the Idempotency-Key: {ack.error.description}.")
                failure = BrokerUnavailable("the key is being replicated")
            except BrokerUnavailable as error:
                failure = error
        raise failure

    async def _read(self, subject: str) -> IdempotencyRecord:
        try:
            stored = await self._broker.last_message(subjects.IDEMPOTENCY, subject)
        except JetStreamError as error:
            raise BrokerUnavailable(str(error)) from None
        if stored is None:
            raise BrokerUnavailable("the key expired while it was read")
        return msgspec.json.decode(stored.data, type=IdempotencyRecord)

    async def _mark(self, subject: str, record: IdempotencyRecord) -> None:
        """Record that its jobs are stored, which spares every repeat the search for them. Losing this costs no more."""
        payload = msgspec.json.encode(msgspec.structs.replace(record, stored=True))
        headers = {"Nats-Msg-Id": f"stored.{record.job.job_id}", "traceparent": record.job.trace or ""}
        try:
            await self._broker.publish(subject, payload, headers, timeout=1.0)
        except BrokerUnavailable:
            return

    async def _appears(self, subject: str, job_id: str) -> bool:
        """Whether the job is there within the time that its first caller may take to store it."""
        until = asyncio.get_running_loop().time() + FIRST_WITHIN_SECONDS
        async for _ in attempts(0.03, 0.03, until=until):
            if await self._in_stream(job_id) or (await self._read(subject)).stored:
                return True
        return False

    async def _in_stream(self, job_id: str) -> bool:
        try:
            return await self._publisher.last(job_id) is not None
        except JetStreamError as error:
            raise BrokerUnavailable(str(error)) from None


def _of_tenant(key: str, tenant: str) -> str:
    """Digest of a tenant's key: two tenants may use the same. No key holds a NUL, so that no key can feign a tenant."""
    whose = "" if tenant == messages.DEFAULT_TENANT else f"{tenant}\0"
    return hashlib.sha256(f"{whose}{key}".encode()).hexdigest()
