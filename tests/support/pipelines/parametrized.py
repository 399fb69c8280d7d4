"""Job types with parameters and outputs: `clip`, whose stages pass on what they return, and `quiet`.

A stage of `clip` fails while the test has called `Clips.spoil` for it. TEST_CLIP_TYPE declares the type as a later
deploy does: `newer` requires one more parameter, `bare` has no parameters.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from heimdex import Context, PermanentError, Pipeline, Stage

FOLDER, DECLARED = "TEST_CLIP_FOLDER", "TEST_CLIP_TYPE"
STAGES = ("cutting", "checking", "joining")


class Box(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The size of a clip."""

    width: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 640
    height: int = 360


class Clip(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of every kind."""

    source: Annotated[str, msgspec.Meta(min_length=1)]
    language: Literal["auto", "en", "de"] = "auto"
    box: Box = Box()
    tags: Annotated[list[str], msgspec.Meta(max_length=100)] = []
    threshold: float = 0.5
    any: Any = None


class NewerClip(Clip, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As Clip, with a further one that is required."""

    codec: str


class Quiet(msgspec.Struct, frozen=True):
    """Parameters that all have defaults. An unknown one is refused although the struct would ignore it."""

    volume: int = 3


class Pieces(msgspec.Struct, frozen=True):
    """What `cutting` returns."""

    pieces: int
    of: str


PIPELINES = (
    Pipeline(
        type="clip",
        stages=(
            Stage("cutting", expected_seconds=1, code=f"{__name__}:cut", output=Pieces),
            Stage("checking", expected_seconds=1, code=f"{__name__}:check"),
            Stage("joining", expected_seconds=1, code=f"{__name__}:join"),
        ),
        params={"newer": NewerClip, "bare": None, "": Clip}[os.environ.get(DECLARED, "")],
        retry_backoff_seconds=(),
    ),
    Pipeline(type="quiet", stages=(Stage("hushing", expected_seconds=1, code=f"{__name__}:hush"),), params=Quiet),
)


class Clips:
    """The interface for the test. The workers need `env`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        from tests.support.pipelines import with_pipelines

        return {FOLDER: str(self.folder), "HEIMDEX_RETRY_BACKOFF_SECONDS": "", **with_pipelines("parametrized")}

    def spoil(self, stage: str) -> None:
        """Make every attempt of this stage fail, until `mend`."""
        (self.folder / stage).touch()

    def mend(self) -> None:
        """Let every stage succeed again."""
        for stage in STAGES:
            (self.folder / stage).unlink(missing_ok=True)


def _begin(ctx: Context) -> None:
    if (Path(os.environ[FOLDER]) / ctx.stage).exists():
        raise PermanentError("the script says that this stage is spoilt")


async def cut(params: Clip, ctx: Context) -> Pieces:
    """Return a piece for each tag."""
    _begin(ctx)
    return Pieces(len(params.tags), params.source)


async def check(ctx: Context) -> None:
    """Return nothing."""
    _begin(ctx)


async def join(params: Clip, ctx: Context, cutting: Pieces) -> dict[str, Any]:
    """Return what `cutting` returned, with the parameter `any`."""
    _begin(ctx)
    return {"joined": cutting.pieces, "any": params.any}


async def hush(params: Quiet) -> int:
    """Return the parameter."""
    return params.volume
