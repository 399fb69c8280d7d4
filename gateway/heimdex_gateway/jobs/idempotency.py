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
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.messages import Due
from heimdex_contracts.runtime.jetstream.connection import BEING_STORED, WRONG_LAST_SEQUENCE, JetStreamError
from heimdex_contracts.runtime.jetstream.publisher import Refused
from heimdex_gateway.dependencies import Gateway
from heimdex_gateway.errors import Problem
from heimdex_gateway.jobs.repository import DatabaseUnavailable
from heimdex_gateway.jobs.status import BOTH_NEEDED, StateUnavailable
from heimdex_gateway.jobs.submit import submit, submit_all

#: How long a repeat waits for the first to be stored before it stores the job itself.
FIRST_WITHIN_SECONDS: Final = 1.5
#: The server's duplicate window, less some: as long as it lasts, publishing again cannot run a job twice, unless the
#: server was restarted. So Postgres is asked first all the same.
SURELY_REMEMBERED_SECONDS: Final = 100.0


class IdempotencyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the bucket keeps of a key. `others`: ids of a batch's further jobs, which the body of a repeat tells again.

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


def _of_tenant(key: str, tenant: str) -> str:
    """Digest of a tenant's key: two tenants may use the same. No key holds a NUL, so that no key can feign a tenant."""
    whose = "" if tenant == messages.DEFAULT_TENANT else f"{tenant}\0"
    return hashlib.sha256(f"{whose}{key}".encode()).hexdigest()


async def submit_once(gateway: Gateway, key: str, body: str, jobs: Sequence[Due]) -> list[str]:
    """Submit these jobs, or find those that the key made; returns their ids. `body`: the digest of what was asked for.

    Raises Problem 422 where the key was used with another body, StateUnavailable where it cannot be determined whether
    the jobs of a key are there, and what `submit` raises.
    """
    await gateway.installation.check()
    subject = subjects.key_subject(_of_tenant(key, jobs[0].tenant))
    made = IdempotencyRecord(job=jobs[0], body=body, others=[job.job_id for job in jobs[1:]])
    if await _create(gateway, subject, made):
        await _store(gateway, jobs)
        await _mark(gateway, subject, made)
        return made.ids
    found = await _read(gateway, subject)
    if found.body != body:
        raise Problem(422, "This Idempotency-Key was used with another body; use another key.", field="Idempotency-Key")
    if not found.stored and not await _appears(gateway, subject, found.job.job_id):
        # It may have run and left the stream, which only Postgres knows.
        try:
            if await gateway.database.job(found.job.job_id, found.job.tenant) is not None:
                return found.ids
        except DatabaseUnavailable:
            age = (messages.now() - found.job.created_at).total_seconds()
            if age > SURELY_REMEMBERED_SECONDS:
                raise StateUnavailable(BOTH_NEEDED) from None
        others = zip(jobs[1:], found.others, strict=True)
        await _store(gateway, [found.job, *(msgspec.structs.replace(job, job_id=job_id) for job, job_id in others)])
        await _mark(gateway, subject, found)
    return found.ids


async def _store(gateway: Gateway, jobs: Sequence[Due]) -> None:
    await (submit(gateway, jobs[0]) if len(jobs) == 1 else submit_all(gateway, jobs))


async def _create(gateway: Gateway, subject: str, made: IdempotencyRecord) -> bool:
    """Whether we are the first with this key."""
    deadline = asyncio.get_running_loop().time() + 2.0
    while True:
        try:
            ack = await gateway.broker.publish(
                subject,
                msgspec.json.encode(made),
                {
                    "Nats-Expected-Last-Subject-Sequence": "0",
                    "Nats-Msg-Id": f"key.{made.job.job_id}",
                    "traceparent": made.job.trace or "",
                },
                timeout=1.0,
            )
            if ack.error is not None and ack.error.err_code == BEING_STORED:
                raise BrokerUnavailable("the key is being replicated")
        except BrokerUnavailable:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.05)
            continue
        if ack.error is None:
            return True
        if ack.error.err_code in WRONG_LAST_SEQUENCE:
            try:
                found = await _read(gateway, subject)
            except BrokerUnavailable:
                # Another's key is being stored, and cannot be read yet; or it expired this very moment.
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.05)
                continue
            # Ours, if an earlier try of this very call was stored.
            return found.job.job_id == made.job.job_id
        raise Refused(f"JetStream refused the Idempotency-Key: {ack.error.description}.")


async def _read(gateway: Gateway, subject: str) -> IdempotencyRecord:
    try:
        stored = await gateway.broker.last_message(subjects.IDEMPOTENCY, subject)
    except JetStreamError as error:
        raise BrokerUnavailable(str(error)) from None
    if stored is None:
        raise BrokerUnavailable("the key expired while it was read")
    return msgspec.json.decode(stored.data, type=IdempotencyRecord)


async def _mark(gateway: Gateway, subject: str, made: IdempotencyRecord) -> None:
    """Say that its job is stored: spares every repeat the search for it. Losing this costs nothing but that search."""
    payload = msgspec.json.encode(msgspec.structs.replace(made, stored=True))
    headers = {"Nats-Msg-Id": f"stored.{made.job.job_id}", "traceparent": made.job.trace or ""}
    try:
        await gateway.broker.publish(subject, payload, headers, timeout=1.0)
    except BrokerUnavailable:
        return


async def _appears(gateway: Gateway, subject: str, job_id: str) -> bool:
    """Whether the job is there within the time that its first caller may take to store it."""
    deadline = asyncio.get_running_loop().time() + FIRST_WITHIN_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        if (await _read(gateway, subject)).stored or await _in_stream(gateway, job_id):
            return True
        await asyncio.sleep(0.03)
    return False


async def _in_stream(gateway: Gateway, job_id: str) -> bool:
    try:
        return await gateway.publisher.last(job_id) is not None
    except JetStreamError as error:
        raise BrokerUnavailable(str(error)) from None
