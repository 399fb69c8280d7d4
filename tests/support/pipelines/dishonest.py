"""Job types whose stage does what a stage must not: `<name>-async` on the event loop, `<name>-blocking` in a thread.

`FAILS` has the words of each job's error; the jobs of `COMPLETES` succeed. The stage of `deaf-async` has a timeout, and
ignores its cancellation until its worker ends.
"""

import asyncio
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from heimdex import Context, PermanentError, Pipeline, Stage, StageInterrupted

STAGES = ("async-lies", "blocking-lies")

FAILS = {
    "reports_nan": "ValueError: ctx.report takes a number from 0 to 1, not nan",
    "reports_text": "TypeError: ctx.report takes a number from 0 to 1",
    "changes_context": "AttributeError: ctx.attempt cannot be set",
    "hostile": "X" * 200,
    "lazy": "its code has not run",
    "claims": "StageInterrupted although nobody interrupted it",
    "exits": "the stage tried to end its worker: SystemExit",
    "group": "failed permanently on attempt 1: the file is not a video",
}
COMPLETES = ("honest", "reports_decimal", "forces_context")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not telling")

    __repr__ = __str__


Hostile = type("X" * 3_000_000, (Unspeakable,), {})


def lie(ctx: Context) -> Any:
    match ctx.job_type.partition("-")[0]:
        case "reports_nan":
            ctx.report(float("nan"))
        case "reports_text":
            ctx.report("0.5")  # type: ignore[arg-type]
        case "reports_decimal":
            ctx.report(Decimal("0.5"))
        case "changes_context":
            ctx.attempt = "first"  # type: ignore[misc,assignment]
        case "forces_context":
            state = ctx._state
            for name, value in {"_fraction": "nan", "job_id": None, "attempt": "first", "reported": None}.items():
                object.__setattr__(state, name, value)
            object.__setattr__(ctx, "_state", None)
        case "hostile":
            raise Hostile
        case "lazy":
            return later()
        case "claims":
            raise StageInterrupted
        case "exits":
            raise SystemExit(3)
        case "group":
            inner = ExceptionGroup("inner", [ValueError("beside it"), PermanentError("the file is not a video")])
            raise ExceptionGroup("unhandled errors in a TaskGroup", [inner])
    return None


def later() -> Iterator[None]:
    yield


async def lie_async(ctx: Context) -> Any:
    if ctx.job_type == "deaf-async":
        while True:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
    result = lie(ctx)
    await asyncio.sleep(0.2)  # for a progress message
    return result


def lie_blocking(ctx: Context) -> Any:
    result = lie(ctx)
    time.sleep(0.2)
    return result


PIPELINES = (
    *(
        Pipeline(
            type=f"{name}-{kind}",
            stages=(Stage(f"{kind}-lies", expected_seconds=1, code=f"{__name__}:lie_{kind}"),),
            retry_backoff_seconds=(),
        )
        for kind in ("async", "blocking")
        for name in (*FAILS, *COMPLETES)
    ),
    Pipeline(
        type="deaf-async",
        stages=(Stage(STAGES[0], expected_seconds=1, code=f"{__name__}:lie_async", timeout_seconds=0.5),),
        retry_backoff_seconds=(),
    ),
)
