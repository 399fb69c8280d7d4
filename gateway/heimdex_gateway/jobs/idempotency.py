"""Idempotency keys: the same key and body give the same job or batch, for 24 hours, across gateways and restarts.

A key-value bucket of JetStream holds a record of each key. The request that creates the record chooses the ids of the
jobs; every other request with this key returns these ids. The record is created before the jobs are published, so a
crash between the two leaves a record whose jobs do not exist. A repeated request then publishes them under the same
ids, and the broker accepts them only once. A batch is stored completely or not at all: if its first job exists, all
exist.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from heimdex_contracts import messages, subjects
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError
from heimdex_contracts.messages import Due
from heimdex_contracts.runtime.backoff import repeat
from heimdex_contracts.runtime.jetstream.connection import BEING_STORED, WRONG_LAST_SEQUENCE, Broker, JetStreamError
from heimdex_contracts.runtime.jetstream.publisher import Publisher, Refused
from heimdex_gateway.jobs.repository import Database, DatabaseUnavailable
from heimdex_gateway.jobs.status import BOTH_NEEDED, StateUnavailable
from heimdex_gateway.jobs.submit import Submit

#: How long a repeated request waits until the jobs of the first request are stored, before it publishes them itself.
FIRST_WITHIN_SECONDS: Final = 1.5
#: How long the creation or the read of a record is retried.
CREATED_WITHIN_SECONDS: Final = 2.0
#: Somewhat less than the server's duplicate window. Within this window, publishing again cannot run a job twice, unless
#: the server was restarted. Because of that exception, Postgres is queried first all the same.
SURELY_REMEMBERED_SECONDS: Final = 100.0


class KeyReused(HeimdexError):
    """The idempotency key was used with a different body."""


class IdempotencyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The stored record of an idempotency key.

    job: without its params, which could fill the disk of NATS: a repeated request contains them.
    others: the ids of a batch's further jobs; a repeated request contains their bodies.
    stored: the jobs are known to be, or to have been, in the stream.
    """

    job: Due
    body: str
    others: list[str] = []
    stored: bool = False

    @property
    def ids(self) -> list[str]:
        """The ids of all its jobs, in order."""
        return [self.job.job_id, *self.others]


class IdempotentSubmit:
    """The use case that submits jobs once per idempotency key."""

    def __init__(self, broker: Broker, publisher: Publisher, database: Database, submit: Submit) -> None:
        self._broker = broker
        self._publisher = publisher
        self._database = database
        self._submit = submit

    async def submit(self, key: str, body: str, jobs: Sequence[Due]) -> list[str]:
        """Submit these jobs, unless a request with this key already did. Returns the ids of the jobs.

        body: the digest of the request's body. Raises KeyReused if the key was used with a different body,
        StateUnavailable if it cannot be determined whether the jobs of the key exist, and what Submit.submit raises.
        """
        await self._submit.check_streams()
        subject = subjects.key_subject(_digest_of(key, jobs[0].tenant))
        first = msgspec.structs.replace(jobs[0], params=messages.NOTHING)
        new = IdempotencyRecord(job=first, body=body, others=[job.job_id for job in jobs[1:]])
        record = await self._create_or_read(subject, new)
        if record.job.job_id == new.job.job_id:
            # This call created the record, now or with an earlier publish that was not confirmed.
            await self._submit.submit(jobs)
            await self._mark(subject, new)
            return new.ids
        if record.body != body:
            raise KeyReused("This Idempotency-Key was used with a different body; use another key.")
        if not record.stored and not await self._appears(subject, record.job.job_id):
            # The job may have finished and left the stream. Then only Postgres has it.
            try:
                if await self._database.job(record.job.job_id, record.job.tenant) is not None:
                    return record.ids
            except DatabaseUnavailable:
                age = (messages.now() - record.job.created_at).total_seconds()
                if age > SURELY_REMEMBERED_SECONDS:
                    raise StateUnavailable(BOTH_NEEDED) from None
            others = zip(jobs[1:], record.others, strict=True)
            repeated = [msgspec.structs.replace(job, job_id=job_id) for job, job_id in others]
            await self._submit.submit([msgspec.structs.replace(record.job, params=jobs[0].params), *repeated])
            await self._mark(subject, record)
        return record.ids

    async def _create_or_read(self, subject: str, new: IdempotencyRecord) -> IdempotencyRecord:
        """Create the record of a key and return `new`, or return the stored record if the key has one.

        Raises BrokerUnavailable or Refused.
        """
        until = asyncio.get_running_loop().time() + CREATED_WITHIN_SECONDS
        failure = BrokerUnavailable("the key could not be stored")
        async for _ in repeat(0.05, 0.05, until=until):
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
                    # The read fails while another request's record is being stored, or if the record has just expired.
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
        """Mark the record's jobs as stored, so that repeated requests need not search for them.

        If this mark is lost, they search; nothing else depends on it.
        """
        payload = msgspec.json.encode(msgspec.structs.replace(record, stored=True))
        headers = {"Nats-Msg-Id": f"stored.{record.job.job_id}", "traceparent": record.job.trace or ""}
        try:
            await self._broker.publish(subject, payload, headers, timeout=1.0)
        except BrokerUnavailable:
            return

    async def _appears(self, subject: str, job_id: str) -> bool:
        """Wait FIRST_WITHIN_SECONDS at most for the first request to store the job. Returns whether it did."""
        until = asyncio.get_running_loop().time() + FIRST_WITHIN_SECONDS
        async for _ in repeat(0.03, 0.03, until=until):
            if await self._in_stream(job_id) or (await self._read(subject)).stored:
                return True
        return False

    async def _in_stream(self, job_id: str) -> bool:
        try:
            return await self._publisher.last(job_id) is not None
        except JetStreamError as error:
            raise BrokerUnavailable(str(error)) from None


def _digest_of(key: str, tenant: str) -> str:
    """Return the digest of a tenant's key, so that two tenants may use the same key.

    A key cannot contain a NUL, so no key of one tenant has the digest of another tenant's key.
    """
    prefix = "" if tenant == messages.DEFAULT_TENANT else f"{tenant}\0"
    return hashlib.sha256(f"{prefix}{key}".encode()).hexdigest()
