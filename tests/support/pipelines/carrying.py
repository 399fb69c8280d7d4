"""A job type whose stages take its params and the outputs of the stages before, and a type that shares a stage's name.

`Film.fault` names what the attempts of `mixing-down` do before they succeed:

    kill    the first two kill their worker
    gate    they run until `open_gate`
    later   the first one asks to be retried after 0.2 s; the policy's delay is ten minutes
    nan     all of them return a NaN
"""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec

from heimdex import Context, Pipeline, RetryAfter, Stage
from tests.support.pipelines import with_pipelines

VARIABLE = "TEST_CARRYING_FOLDER"
STAGES = ("cutting", "mixing-down", "printing")


class Film(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    title: str
    scenes: int = 3
    fault: str = ""


class Cut(msgspec.Struct):
    title: str
    seconds: list[float]


class Mixed(msgspec.Struct):
    loudness: float
    attempt: int


PIPELINES = (
    Pipeline(
        type="film",
        params=Film,
        stages=(
            Stage("cutting", 1, f"{__name__}:cut", output=Cut),
            Stage("mixing-down", 1, f"{__name__}:mix", output=Mixed, retry_backoff_seconds=(0.1, 600, 600)),
            Stage("printing", 1, f"{__name__}:print_film"),
        ),
        retry_backoff_seconds=(),
    ),
    Pipeline(type="poster", stages=(Stage("printing", 1, f"{__name__}:print_poster"),)),
)


def env(folder: Path) -> dict[str, str]:
    """Return the settings of the workers."""
    return {VARIABLE: str(folder), "HEIMDEX_RETRY_BACKOFF_SECONDS": "", **with_pipelines("carrying")}


def open_gate(folder: Path) -> None:
    (folder / "gate").touch()


async def cut(params: Film) -> Cut:
    await asyncio.sleep(0)
    return Cut(params.title, [0.5 * number for number in range(params.scenes)])


def mix(ctx: Context, cutting: Cut, params: Film) -> Any:
    match params.fault:
        case "kill" if ctx.attempt <= 2:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        case "gate":
            while not (Path(os.environ[VARIABLE]) / "gate").exists():
                time.sleep(0.02)
                ctx.report(0.5)
        case "later" if ctx.attempt == 1:
            raise RetryAfter(0.2, "the mixer is busy")
        case "nan":
            return Mixed(float("nan"), ctx.attempt)
    return Mixed(sum(cutting.seconds), ctx.attempt)


def print_film(*, mixing_down: Mixed, params: Film, ctx: Context, cutting: Cut) -> dict[str, Any]:
    return {
        "title": cutting.title,
        "scenes": params.scenes,
        "loudness": mixing_down.loudness,
        "attempt": mixing_down.attempt,
        "stage": ctx.stage,
    }


def print_poster(ctx: Context) -> str:
    return f"a poster of {ctx.job_type}"
