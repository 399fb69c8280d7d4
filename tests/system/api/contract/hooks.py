"""What schemathesis sends: allowed values that a generator would not find, or that would take too long."""

import contextlib
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import schemathesis
from hypothesis import strategies as st

_KEY = re.compile('[!#-~]([ -~]{0,253}[!-~])?|"[ !#-\\[\\]-~]{1,255}"')

# A name would be resolved on the network, and most addresses may not be called; nobody listens on this one.
_URLS = st.text("abcxyz019-._~/?=&", max_size=20).map(lambda rest: f"http://127.0.0.1:9/{rest}")
schemathesis.openapi.format("uri", _URLS)

# `run_at` may be a year ahead at most, which JSON Schema cannot express.
_MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime.now(UTC).replace(tzinfo=None) + timedelta(days=300))
schemathesis.openapi.format("date-time", _MOMENTS.map(lambda moment: f"{moment.isoformat(timespec='microseconds')}Z"))


@schemathesis.hook
def before_call(context: Any, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Shorten a valid wait, use each key once (it would rightly be refused with the next body), and change some params.

    The schema of a parameter of the type Any cannot say that it takes no NUL and no integer beyond 64 bits.
    """
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if 0.1 < float(case.query["wait"]) <= 300:
            case.query["wait"] = "0.1"
    for name in case.headers or {}:
        if name.lower() == "idempotency-key" and _KEY.fullmatch(str(case.headers[name])):
            case.headers[name] = uuid.uuid4().hex
    jobs = case.body.get("jobs", [case.body]) if isinstance(case.body, dict) else []
    for job in jobs if isinstance(jobs, list) else []:
        with contextlib.suppress(KeyError, TypeError):
            job["params"]["any"] = _storable(job["params"]["any"])


def _storable(value: Any) -> Any:
    match value:
        case str():
            return value.replace("\0", "")
        case int() if not isinstance(value, bool):
            return value % 2**63
        case list():
            return [_storable(item) for item in value]
        case dict():
            return {_storable(key): _storable(item) for key, item in value.items()}
    return value
