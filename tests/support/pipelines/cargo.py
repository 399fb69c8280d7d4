"""A job type whose stages carry data: each output is computed from the parameters and the outputs before it.

It shares the names of its stages with `mock_process`, each with its own code, so the same workers run both. `expected`
computes what a job must return, byte for byte.
"""

import asyncio
import hashlib
import time
from typing import Any

import msgspec

from heimdex import Context, Pipeline, Stage

#: Text that an encoding, a terminal or a database could damage. It is as long as it must be, by repetition.
AWKWARD = 'Zürich "ﬁlm" \\u0000 \\ \u2028 \x7f 👩‍🚀 \ttab\nline – <&>'


class Cargo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters: `seed` makes jobs differ, `size` is the length of each output's text in characters."""

    seed: int
    size: int = 100
    label: str = AWKWARD
    weights: dict[str, float | None] = {}


class Extracted(msgspec.Struct, frozen=True):
    text: str
    digest: str


class Analyzed(msgspec.Struct, frozen=True):
    text: str
    digest: str
    scenes: list[tuple[float, float]]


PIPELINES = (
    Pipeline(
        type="carrying",
        params=Cargo,
        stages=(
            Stage("extracting", expected_seconds=2, code=f"{__name__}:extract", output=Extracted),
            Stage("analyzing", expected_seconds=3, code=f"{__name__}:analyze", output=Analyzed),
            Stage("indexing", expected_seconds=1, code=f"{__name__}:index"),
        ),
        retry_backoff_seconds=(1, 2, 4),
    ),
)


def extract(params: Cargo, ctx: Context) -> Extracted:
    _work(ctx)
    return extracted(params)


async def analyze(ctx: Context, extracting: Extracted, params: Cargo) -> Analyzed:
    await asyncio.sleep(ctx.expected_seconds * ctx.mock_time_scale)
    return analyzed(params, extracting)


async def index(analyzing: Analyzed, extracting: Extracted, params: Cargo, ctx: Context) -> dict[str, Any]:
    await asyncio.sleep(ctx.expected_seconds * ctx.mock_time_scale)
    return indexed(params, extracting, analyzing)


def _work(ctx: Context) -> None:
    until = time.monotonic() + ctx.expected_seconds * ctx.mock_time_scale
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(0.05, left))
        ctx.report(1 - left / (ctx.expected_seconds * ctx.mock_time_scale))


def extracted(params: Cargo) -> Extracted:
    return Extracted(_text(params, "extracted"), _digest(params))


def analyzed(params: Cargo, extracting: Extracted) -> Analyzed:
    scenes = [(number / 3, number / 3 + 0.1) for number in range(params.seed % 7)]
    return Analyzed(_text(params, "analyzed"), _digest(params, extracting), scenes)


def indexed(params: Cargo, extracting: Extracted, analyzing: Analyzed) -> dict[str, Any]:
    return {"text": _text(params, "indexed"), "digest": _digest(params, extracting, analyzing), "null": None}


def expected(params: dict[str, Any]) -> dict[str, Any]:
    """Return the outputs of a completed job with these parameters, by stage, as JSON decodes them."""
    cargo = msgspec.convert(params, Cargo)
    extracting = extracted(cargo)
    analyzing = analyzed(cargo, extracting)
    outputs = {"extracting": extracting, "analyzing": analyzing, "indexing": indexed(cargo, extracting, analyzing)}
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(outputs))
    return decoded


def cargo(seed: int, size: int = 100, **fields: Any) -> dict[str, Any]:
    """Return the parameters of a job, with every default, as the API shows them."""
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(Cargo(seed=seed, size=size, **fields)))
    return decoded


def _text(params: Cargo, name: str) -> str:
    whole = f"{name} {params.seed} {params.label} "
    return (whole * (1 + params.size // len(whole)))[: params.size]


def _digest(*values: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(values)).hexdigest()
