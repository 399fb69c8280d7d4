"""A waiting loop ends at its deadline, or at once when its process stops."""

import asyncio

from heimdex_contracts.runtime.backoff import repeat, set_within


async def test_a_loop_runs_at_least_once() -> None:
    past, stopped = asyncio.get_running_loop().time() - 1, asyncio.Event()
    stopped.set()
    assert [turn async for turn in repeat(60, 60, until=past)] == [None]
    assert [turn async for turn in repeat(60, 60, stop=stopped)] == [None]


async def test_a_stop_ends_the_delay_at_once_and_the_loop_after_one_more_repetition() -> None:
    stop, turns = asyncio.Event(), 0
    async with asyncio.timeout(30):  # of a delay of 600 s
        async for _ in repeat(600, 600, stop=stop):
            turns += 1
            asyncio.get_running_loop().call_soon(stop.set)
    assert turns == 2


async def test_a_delay_is_cut_short_by_the_time_at_which_the_loop_ends() -> None:
    loop = asyncio.get_running_loop()
    until, turns = loop.time() + 0.05, 0
    async with asyncio.timeout(30):
        async for _ in repeat(600, 600, until=until):
            turns += 1
    # The delay may end up to a millisecond before `until`. The rest is one turn at most, and not a hundred.
    assert turns in {2, 3}
    assert loop.time() >= until - 0.01


async def test_the_delay_doubles_up_to_its_maximum() -> None:
    loop = asyncio.get_running_loop()
    started_at, turns = loop.time(), 0
    async for _ in repeat(0.01, 0.03):
        turns += 1
        if turns == 5:
            break
    assert loop.time() - started_at >= 0.9 * (0.01 + 0.02 + 0.03 + 0.03)  # a clock may have a coarse resolution


async def test_a_loop_that_is_left_early_leaves_no_task_behind() -> None:
    async for _ in repeat(600, 600):
        break
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_event_is_waited_for_no_longer_than_necessary() -> None:
    event = asyncio.Event()
    assert not await set_within(event, 0.01)
    asyncio.get_running_loop().call_soon(event.set)
    async with asyncio.timeout(30):
        assert await set_within(event, 600)
