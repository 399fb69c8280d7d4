"""Lists jobs, newest first, by keyset: the page after a job is found by that job's place, however far down it is."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import msgspec

from heimdex_contracts import messages
from heimdex_contracts.job_object import JobObject
from heimdex_contracts.pipelines import Pipelines
from heimdex_gateway.jobs.repository import STATUSES, Cursor, JobQuery
from heimdex_gateway.problem import Problem

MOST: Final = 1000
USUAL: Final = 50
PARAMETERS: Final = ("status", "type", "created_after", "created_before", "limit", "cursor")
#: A place as a caller has it: microseconds since 1970, and the id. Whatever looks so can be used, and nothing else.
CURSOR: Final = r"^[0-9]{16}\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_CURSOR: Final = re.compile(CURSOR)


class JobList(msgspec.Struct, frozen=True):
    """A page. `next_cursor`: for the page after it, null on the last."""

    jobs: list[JobObject]
    next_cursor: Annotated[str, msgspec.Meta(pattern=CURSOR)] | None


def wanted(query: Mapping[str, str], pipelines: Pipelines) -> JobQuery:
    """Read the query parameters. Raises Problem 422 that names the one that is wrong."""
    for name in query:
        if name not in PARAMETERS:
            allowed = ", ".join(map(repr, PARAMETERS))
            raise Problem(422, f"There is no parameter {name[:60]!r}; the parameters are {allowed}.", field=name[:100])
    return JobQuery(
        status=one_of("status", query.get("status"), STATUSES),
        type=one_of("type", query.get("type"), pipelines.types),
        created_after=_moment("created_after", query.get("created_after")),
        created_before=_moment("created_before", query.get("created_before")),
        limit=_limit(query.get("limit")),
        cursor=_place(query.get("cursor")),
    )


def single(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Each parameter once. Raises Problem 422 for one that is given twice."""
    found: dict[str, str] = {}
    for name, value in items:
        if name in found:
            raise Problem(422, f"The parameter {name[:60]!r} is given twice.", field=name[:100])
        found[name] = value
    return found


def page(objects: list[JobObject], places: list[Cursor], limit: int) -> JobList:
    """`objects` and their places, one more than `limit` where there is another page."""
    if len(objects) <= limit:
        return JobList(objects, None)
    last = places[limit - 1]
    return JobList(objects[:limit], f"{(last.created_at - _EPOCH) // _MICROSECOND:016d}.{last.id}")


def one_of(name: str, value: str | None, allowed: tuple[str, ...]) -> str | None:
    """The value, or None where there is none. Raises Problem 422."""
    if value is not None and value not in allowed:
        choices = ", ".join(map(repr, allowed))
        raise Problem(422, f"The parameter {name!r} must be one of {choices}, not {value[:60]!r}.", field=name)
    return value


def _limit(value: str | None) -> int:
    if value is None:
        return USUAL
    if not (value.isascii() and value.isdigit() and len(value) < 10 and 1 <= int(value) <= MOST):
        raise Problem(
            422, f"The parameter 'limit' must be a whole number from 1 to {MOST}, not {value[:60]!r}.", field="limit"
        )
    return int(value)


def _moment(name: str, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        at: datetime = msgspec.convert(value.replace(" ", "+"), messages.Moment)
        return at.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError, ValueError):
        raise Problem(
            422,
            f"The parameter {name!r} must be a time with its zone such as 2025-10-28T12:00:00Z, not {value[:60]!r}.",
            field=name,
        ) from None


def _place(value: str | None) -> Cursor | None:
    if value is None:
        return None
    if not _CURSOR.fullmatch(value):
        raise Problem(
            422,
            "The parameter 'cursor' is none of ours: take it from 'next_cursor' of the page before, as it is.",
            field="cursor",
        )
    since_epoch, _, job_id = value.partition(".")
    return Cursor(_EPOCH + int(since_epoch) * _MICROSECOND, job_id)
