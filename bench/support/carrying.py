"""A job type whose stages hand over as much text as its parameters have; scenarios/carried.py measures with it."""

import msgspec

from heimdex import Pipeline, Stage


class Carried(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """text: as many characters as params and each output are to have bytes, about."""

    text: str


PIPELINES = (
    Pipeline(
        type="carrying",
        params=Carried,
        stages=(
            Stage("extracting", expected_seconds=2, code=f"{__name__}:extract", output=str),
            Stage("analyzing", expected_seconds=3, code=f"{__name__}:analyze", output=str),
            Stage("indexing", expected_seconds=1, code=f"{__name__}:index", output=str),
        ),
    ),
)


async def extract(params: Carried) -> str:
    """Return the text of the parameters."""
    return params.text


async def analyze(extracting: str) -> str:
    """Return the output of the stage before."""
    return extracting


async def index(params: Carried, analyzing: str) -> str:
    """Return the output of the stage before, if it is the text of the parameters."""
    if analyzing != params.text:
        raise ValueError("the output of the stage before is not what it returned")
    return analyzing
