"""What a cancel and a retry share: the job's newest message, its successor, and the wait until a GET shows it."""

import asyncio
import contextlib
from typing import Any, Final

import msgspec

from heimdex_contracts import lifecycle, messages, tracing
from heimdex_contracts.errors import BrokerUnavailable, HeimdexError, UnusableMessage
from heimdex_contracts.job_spec import spec_of
from heimdex_contracts.lifecycle import Snapshot
from heimdex_contracts.messages import AnyJobMessage, Follows, JobMessage
from heimdex_contracts.runtime.jetstream.connection import JetStreamError, Stored
from heimdex_gateway.dependencies import Gateway
from heimdex_gateway.jobs.status import NATS_DOWN, StateUnavailable

#: How long an answer waits for the status store to record the change.
RECORDED_WITHIN_SECONDS: Final = 2.0
TIMEOUT_SECONDS: Final = 2.0
#: All of it together: less than `routes.answers` allows, so that a change that is stored is never answered with 500.
ANSWERED_WITHIN_SECONDS: Final = 4.0
#: Between two looks at a stream whose leader does not know yet what Postgres does.
BEHIND_SECONDS: Final = 0.05
#: A job that moves on between our look and our publish is looked at again; it has few stages to move through.
LOOKS: Final = 20


class Conflict(HeimdexError):
    """The job's state does not allow the change; the text says why."""


class Changed(msgspec.Struct, frozen=True):
    """The job after the change, whether Postgres has it already, and whether Postgres could be asked at all."""

    job: Snapshot
    recorded: bool
    asked: bool = True


def succeed(last: AnyJobMessage, stored: Stored | None, job: Snapshot, traceparent: str | None) -> dict[str, Any]:
    """What the successor of `last` has in any case. stored: that message, where the stream still has it."""
    return spec_of(last, JobMessage) | {
        "step": last.step + 1,
        "at": max(messages.now(), last.at, job.updated_at),
        "follows": Follows(stored.sequence) if stored else None,
        "trace": tracing.start(traceparent) if traceparent else tracing.child(last.trace),
    }


async def job_and_newest(
    gateway: Gateway, tenant: str, job_id: str
) -> tuple[Snapshot | None, tuple[Stored, AnyJobMessage] | None]:
    """The job, and its newest message in the stream.

    That message may be a left-over, which a status store that is frozen has not acknowledged while another has
    recorded all that came after it. So it is looked at first: the job is then seen to have gone on, or ended.
    """
    try:
        found = await newest(gateway, job_id)
    except StateUnavailable:
        job = await gateway.status.job(job_id, tenant)
        if job is None or job.ended:
            return job, None
        raise
    return await gateway.status.job(job_id, tenant), found


async def newest(gateway: Gateway, job_id: str) -> tuple[Stored, AnyJobMessage] | None:
    """The newest message in the stream, or None. Raises StateUnavailable."""
    try:
        last = await gateway.publisher.last(job_id)
        return None if last is None else (last, messages.decode_job(last.subject, last.data))
    except (BrokerUnavailable, JetStreamError):
        raise StateUnavailable(NATS_DOWN) from None
    except UnusableMessage:
        raise StateUnavailable("A stranger's message is in the way of this job. Try again in a few seconds.") from None


async def publish(gateway: Gateway, message: AnyJobMessage, expected: int) -> None:
    """As the successor of stream sequence `expected`. Raises as Publisher.publish."""
    await gateway.publisher.publish(message, expected, asyncio.get_running_loop().time() + TIMEOUT_SECONDS)


async def is_recorded(gateway: Gateway, message: AnyJobMessage) -> bool:
    """Whether a publish that was refused had been stored, unheard, by an earlier try, and left the stream since."""
    with contextlib.suppress(HeimdexError):
        return await gateway.database.last_message(message.job_id) == message
    return False


async def wait_until_visible(gateway: Gateway, message: AnyJobMessage, answer_by: float) -> Changed:
    """Wait until a plain GET shows the change, but for no longer than an answer may take."""
    after = lifecycle.snapshot(message)
    asked = False
    deadline = min(answer_by, asyncio.get_running_loop().time() + RECORDED_WITHIN_SECONDS)
    delay = 0.005
    while asyncio.get_running_loop().time() < deadline:
        with contextlib.suppress(HeimdexError):
            row = await gateway.database.job(message.job_id, message.tenant)
            asked = True
            if row is not None and row.rank >= after.rank:
                return Changed(row, True)
        await asyncio.sleep(delay)
        delay = min(0.1, delay * 2)
    return Changed(after, False, asked)
