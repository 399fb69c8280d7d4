"""What a subscription keeps for a caller who has not read it yet."""

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from heimdex_contracts import messages, subjects
from heimdex_contracts.messages import AnyMessage, AttemptFailed, Progress
from heimdex_gateway.jobs.subscriptions import Interrupted, Subscription
from tests.support.histories import Writer


async def hear(watch: Subscription, events: list[AnyMessage]) -> None:
    """Deliver the events as NATS does."""
    for event in events:
        data = messages.encode(event)
        if isinstance(event, Progress):
            await watch.on_progress(Msg(Client(), subjects.progress_subject(event.stage, event.job_id), data=data))
            continue
        kind = f"attempts.{event.stage}" if isinstance(event, AttemptFailed) else f"jobs.{messages.token(event)}"
        await watch.on_stored(Msg(Client(), f"{subjects.STORED}.{kind}.{event.job_id}", data=data))


async def unread(watch: Subscription) -> list[AnyMessage]:
    unread: list[AnyMessage] = []
    while (event := await watch.next(0.01)) is not None:
        unread.append(event)
    return unread


async def test_a_slow_reader_gets_every_event_and_the_newest_tick_between_two_events() -> None:
    writer, watch = Writer(), Subscription()
    for fraction in range(1000):
        writer.tick(fraction / 1000)
    writer.fail_attempt()
    writer.tick(0.999)
    while writer.finish_stage():
        writer.tick(0.5)
    await hear(watch, writer.events)
    following = [*writer.events[1:], None]
    ticks_behind = [
        event
        for event, after in zip(writer.events, following, strict=True)
        if isinstance(event, Progress) and isinstance(after, Progress)
    ]
    assert len(ticks_behind) == 1000
    assert await unread(watch) == [event for event in writer.events if event not in ticks_behind]


async def test_events_before_an_interruption_are_sent_before_it() -> None:
    writer, watch = Writer(), Subscription()
    await hear(watch, writer.events)
    watch.interrupt()
    assert await watch.next(1) == writer.due
    with pytest.raises(Interrupted):
        await watch.next(1)
