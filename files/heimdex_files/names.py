"""The keys of files, and which names may be a part of them. Pure.

    <tenant>/<job_id>/<run>/<stage>/<step>.<token>/<name>     what an attempt of a stage saved
    uploads/<tenant>/<upload_id>                              what a caller sent, before any job
    uploads/<tenant>/<upload_id>.used/<job_id>                the marker that a job was submitted with it, empty

The token is random and of one delivery: attempt numbers repeat after a freeze or a restored stream, keys must not.
A tenant may be called `uploads`: its keys have a run number where those of uploads have an id, so no key is both.

A File that arrives in params or outputs is data that a caller could have forged. So a service reads a key only after
`check_key_of_job`, and finds an upload only by its id, below the tenant of the job.
"""

import re
import secrets
import uuid
from typing import Final, NamedTuple

from heimdex_files.errors import InvalidName

MAX_NAME_BYTES: Final = 200
UPLOADS: Final = "uploads"
#: What a service appends to an upload's key for the markers of the jobs that use it.
USED: Final = ".used"
#: S3 allows keys of 1,024 bytes; the prefix of the bucket and the name of the stored object need some of them.
MAX_KEY_BYTES: Final = 800

_UUID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_IS_ID: Final = re.compile(_UUID).fullmatch
_IS_RUN: Final = re.compile(r"[1-9][0-9]{0,9}").fullmatch
_IS_STEP: Final = re.compile(r"(0|[1-9][0-9]{0,9})\.[A-Za-z0-9_-]{16,64}").fullmatch
_IS_USED: Final = re.compile(rf"({_UUID})\.used").fullmatch
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NUMBERED: Final = re.compile(r"#[0-9]+\Z")


class JobFile(NamedTuple):
    """The parts of the key of a file that an attempt saved. `step`: with the token, as in the key."""

    tenant: str
    job_id: str
    run: int
    stage: str
    step: str
    name: str


class Upload(NamedTuple):
    """The parts of an upload's key."""

    tenant: str
    upload_id: str


class UploadUse(NamedTuple):
    """The parts of the key of the marker that a job uses an upload."""

    tenant: str
    upload_id: str
    job_id: str


def new_token() -> str:
    """Return a random token, for the files of one delivery."""
    return secrets.token_urlsafe(18)


def new_upload_id() -> str:
    """Return the id of a new upload: a random UUID, so that nobody guesses another's."""
    return str(uuid.uuid4())


def check_name(name: str) -> str:
    """Return `name` if a file may have it; otherwise raise InvalidName, which gives the rule that it breaks.

    A name has 1 to 200 bytes of UTF-8, no `/`, no control characters, is not `.` or `..`, and does not end with `#` and
    digits, which object stores append to unfinished files.
    """
    if not isinstance(name, str):
        raise InvalidName(f"The name of a file must be text, not {type(name).__name__}.")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidName("The name of a file must be valid UTF-8.") from None
    if not 1 <= size <= MAX_NAME_BYTES:
        raise InvalidName(
            f"The name of a file must have 1 to {MAX_NAME_BYTES} bytes of UTF-8, but this one has {size}."
        )
    if "/" in name:
        raise InvalidName(f"The name of a file must not contain '/', but is {name!r}: a name is no path.")
    if _CONTROL.search(name):
        raise InvalidName(f"The name of a file must not contain control characters, but is {name!r}.")
    if name in {".", ".."}:
        raise InvalidName(f"The name of a file must not be {name!r}.")
    if _NUMBERED.search(name):
        raise InvalidName(f"The name of a file must not end with '#' and a number, but is {name!r}.")
    return name


def check_key(key: str) -> str:
    """Return `key` if it is one or more valid names, joined by `/`; otherwise raise InvalidName."""
    if not isinstance(key, str) or not key:
        raise InvalidName("The key of a file must be text that is not empty.")
    for part in key.split("/"):
        check_name(part)
    if len(key.encode()) > MAX_KEY_BYTES:
        raise InvalidName(f"The key of a file must have at most {MAX_KEY_BYTES} bytes of UTF-8.")
    return key


def job_prefix(tenant: str, job_id: str) -> str:
    """Return the prefix of all files of a job, without a slash at its end. Raises InvalidName."""
    if not _IS_ID(job_id):
        raise InvalidName(f"{job_id!r} is not the id of a job.")
    return f"{check_name(tenant)}/{job_id}"


def file_key(tenant: str, job_id: str, run: int, stage: str, step: int, token: str, name: str) -> str:
    """Return the key of a file that an attempt saves. `token`: from `new_token`, one per delivery.

    Raises InvalidName for a name that breaks the rules, and for any other part that is not one of a key.
    """
    key = f"{job_prefix(tenant, job_id)}/{run}/{check_name(stage)}/{step}.{token}/{check_name(name)}"
    if not isinstance(parse(key), JobFile):
        raise InvalidName(f"Run {run!r}, step {step!r} and this token are not parts of a key.")
    return check_key(key)


def upload_key(tenant: str, upload_id: str) -> str:
    """Return the key of an upload of this tenant. Raises InvalidName if `upload_id` does not have the form of an id."""
    if not _IS_ID(upload_id):
        raise InvalidName("The reference of an upload is 'heimdex:' followed by the id that POST /files returned.")
    return f"{UPLOADS}/{check_name(tenant)}/{upload_id}"


def upload_use_key(tenant: str, upload_id: str, job_id: str) -> str:
    """Return the key of the marker that this job uses an upload. Raises InvalidName."""
    if not _IS_ID(job_id):
        raise InvalidName(f"{job_id!r} is not the id of a job.")
    return f"{upload_key(tenant, upload_id)}{USED}/{job_id}"


def check_key_of_job(key: str, tenant: str, job_id: str) -> JobFile:
    """Return the parts of a key that came from outside, if it is a file of this job; otherwise raise InvalidName.

    The text does not contain the key, which may be another tenant's.
    """
    prefix = job_prefix(tenant, job_id)
    if isinstance(key, str) and key.startswith(f"{prefix}/"):
        check_key(key)
        parts = parse(key)
        if isinstance(parts, JobFile):
            return parts
    raise InvalidName(f"A file that is passed to the job {job_id} must be one that a stage of this job saved.")


def parse(key: str) -> JobFile | Upload | UploadUse | None:
    """Return the parts of a key; None if it has no form that this module makes."""
    match key.split("/"):
        case [tenant, job_id, run, stage, step, name] if _IS_ID(job_id) and _IS_RUN(run) and _IS_STEP(step):
            return JobFile(tenant, job_id, int(run), stage, step, name)
        case ["uploads", tenant, upload_id] if _IS_ID(upload_id):
            return Upload(tenant, upload_id)
        case ["uploads", tenant, used, job_id] if (used_id := _IS_USED(used)) and _IS_ID(job_id):
            return UploadUse(tenant, used_id[1], job_id)
    return None


def job_of(key: str) -> tuple[str, str] | None:
    """Return tenant and id of the job below whose prefix a key is, whatever follows; None if it is below none."""
    match key.split("/"):
        case [tenant, job_id, _, *_] if _IS_ID(job_id) and not isinstance(parse(key), Upload | UploadUse):
            return tenant, job_id
    return None
