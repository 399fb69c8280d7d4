"""The query and the body of GET /jobs: jobs, newest first, with keyset pagination.

A cursor holds the sort key of the last job of a page, so every page costs the same, however far down the list it is.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import msgspec

from heimdex_contracts import messages
from heimdex_contracts.job_object import JobObject, job_object
from heimdex_contracts.pipelines import Pipelines
from heimdex_gateway.jobs.repository import STATUSES, Cursor, JobPage, JobQuery
from heimdex_gateway.problem import Problem

MAX_LIMIT: Final = 1000
DEFAULT_LIMIT: Final = 50
PARAMETERS: Final = ("status", "type", "created_after", "created_before", "limit", "cursor", "include")
#: The text of a cursor: microseconds since 1970, and the job id. Every text of this form is a valid cursor.
CURSOR: Final = r"^[0-9]{16}\.[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
#: The form of a job type (`heimdex_contracts.pipelines`).
_TYPE: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_CURSOR: Final = re.compile(CURSOR)


class JobList(msgspec.Struct, frozen=True):
    """A page of jobs. `next_cursor`: the cursor of the next page, null on the last page."""

    jobs: list[JobObject]
    next_cursor: Annotated[str, msgspec.Meta(pattern=CURSOR)] | None


def read_query(query: Mapping[str, str], pipelines: Pipelines) -> JobQuery:
    """Read the query parameters of GET /jobs. Raises Problem 422, with the name of the invalid parameter.

    The type may be one that the pipelines do not have any more (`job_type`).
    """
    for name in query:
        if name not in PARAMETERS:
            allowed = ", ".join(map(repr, PARAMETERS))
            raise Problem(422, f"There is no parameter {name[:60]!r}; the parameters are {allowed}.", field=name[:100])
    return JobQuery(
        status=one_of("status", query.get("status"), STATUSES),
        type=job_type(query.get("type"), pipelines),
        created_after=_moment("created_after", query.get("created_after")),
        created_before=_moment("created_before", query.get("created_before")),
        limit=_limit(query.get("limit")),
        cursor=_read_cursor(query.get("cursor")),
    )


def single(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return each parameter with its value. Raises Problem 422 if one is repeated."""
    parameters: dict[str, str] = {}
    for name, value in items:
        if name in parameters:
            raise Problem(422, f"The parameter {name[:60]!r} is repeated.", field=name[:100])
        parameters[name] = value
    return parameters


def page(jobs: JobPage, include: Collection[str]) -> JobList:
    """Build the response with a page of jobs. include: as in `job_object`."""
    objects = [job_object(job, include) for job in jobs.jobs]
    if not jobs.more:
        return JobList(objects, None)
    last = jobs.jobs[-1]
    return JobList(objects, f"{(last.created_at - _EPOCH) // _MICROSECOND:016d}.{last.job_id}")


def one_of(name: str, value: str | None, allowed: tuple[str, ...]) -> str | None:
    """Return the value, or None if it is absent. Raises Problem 422 if it is not one of `allowed`."""
    if value is not None and value not in allowed:
        choices = ", ".join(map(repr, allowed))
        raise Problem(422, f"The parameter {name!r} must be one of {choices}, not {value[:60]!r}.", field=name)
    return value


def job_type(value: str | None, pipelines: Pipelines) -> str | None:
    """Return the value of the parameter `type`, or None if it is absent. Raises Problem 422 if it cannot be a job type.

    A type that the pipelines do not have may have been removed while there are jobs of it. If there are none, the
    caller refuses it with `unknown_type`.
    """
    if value is not None and value not in pipelines.types and not _TYPE.fullmatch(value):
        raise unknown_type(value, pipelines)
    return value


def unknown_type(value: str, pipelines: Pipelines) -> Problem:
    """Return the Problem 422 for a type that the pipelines do not have and that no job has."""
    choices = ", ".join(map(repr, pipelines.types))
    return Problem(422, f"The parameter 'type' must be one of {choices}, not {value[:60]!r}.", field="type")


def _limit(value: str | None) -> int:
    if value is None:
        return DEFAULT_LIMIT
    if not (value.isascii() and value.isdigit() and len(value) < 10 and 1 <= int(value) <= MAX_LIMIT):
        raise Problem(
            422,
            f"The parameter 'limit' must be a whole number from 1 to {MAX_LIMIT}, not {value[:60]!r}.",
            field="limit",
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
            f"The parameter {name!r} must be a time with its time zone, such as 2025-10-28T12:00:00Z, "
            f"not {value[:60]!r}.",
            field=name,
        ) from None


def _read_cursor(value: str | None) -> Cursor | None:
    if value is None:
        return None
    if not _CURSOR.fullmatch(value):
        raise Problem(
            422,
            "The parameter 'cursor' is not valid: use the 'next_cursor' of the previous page, unchanged.",
            field="cursor",
        )
    since_epoch, _, job_id = value.partition(".")
    return Cursor(_EPOCH + int(since_epoch) * _MICROSECOND, job_id)
