"""Reads HEIMDEX_FILES_URL.

    file:///srv/heimdex/files
    s3://bucket/prefix?endpoint=http://minio:9000&region=eu-central-1

`endpoint` and `region` are for S3; what they do not say, and the credentials, come from the usual AWS_* variables.
"""

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from heimdex_contracts.errors import SettingsError
from heimdex_files.backends.backend import Backend
from heimdex_files.backends.local import LocalFolder
from heimdex_files.errors import InvalidName
from heimdex_files.names import check_key

SETTING: Final = "HEIMDEX_FILES_URL"
_FORM: Final = "file:///path or s3://bucket/prefix?endpoint=https://host&region=name"
_IS_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]").fullmatch
DEFAULT_REGION: Final = "us-east-1"


def backend_of(url: str) -> Backend:
    """Return the backend that a URL names. It is not asked for anything yet: it may be absent.

    Raises SettingsError, one sentence, for a URL that names none.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _unusable("has an invalid host or port") from None
    if "@" in parts.netloc:
        raise _unusable("contains credentials: remove them, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if port is not None or parts.fragment:
        raise _unusable("has a port or a fragment")
    if parts.scheme == "file":
        return _folder(parts.netloc, parts.path, parts.query)
    if parts.scheme == "s3":
        return _bucket(parts.netloc, parts.path, parts.query)
    raise _unusable(f"begins with {parts.scheme or 'no scheme'!r}")


def _folder(host: str, path: str, query: str) -> Backend:
    if host not in {"", "localhost"}:
        raise _unusable(f"names the host {host!r}: a path has three slashes before it")
    if query:
        raise _unusable("has a query, which a folder does not take")
    folder = unquote(path)
    if "\x00" in folder or not folder.startswith("/"):
        raise _unusable("names no folder")
    if os.path.normpath(folder) == "/":
        raise _unusable("names the root folder of the system: give a folder of its own")
    return LocalFolder(Path(os.path.normpath(folder)))


def _bucket(bucket: str, path: str, query: str) -> Backend:
    if not _IS_BUCKET(bucket):
        raise _unusable("names no valid bucket")
    prefix = unquote(path).strip("/")
    if prefix:
        try:
            check_key(prefix)
        except InvalidName:
            raise _unusable("has a prefix that is no path of plain names") from None
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(options.keys() - {"endpoint", "region"}):
        raise _unusable(f"has the parameter {unknown[0]!r}: only endpoint and region are known")
    endpoint = options.get("endpoint")
    if endpoint is not None and not _is_endpoint(endpoint):
        raise _unusable("has an endpoint that is no URL such as https://host:9000")
    region = options.get("region")
    if region is not None and not re.fullmatch(r"[A-Za-z0-9-]{1,64}", region):
        raise _unusable("has a region that is no name such as eu-central-1")
    endpoint = endpoint or _from_environment("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    region = region or _from_environment("AWS_REGION", "AWS_DEFAULT_REGION") or DEFAULT_REGION
    # Loading obstore takes time and memory, which a process with a folder does not need.
    from heimdex_files.backends import s3

    try:
        store = s3.connect(
            bucket,
            prefix,
            endpoint=endpoint,
            region=region,
            allow_http=(endpoint or "").startswith("http://"),
        )
    except Exception as error:
        raise SettingsError(f"{SETTING} or an AWS_* variable is unusable: {str(error).splitlines()[0]}.") from None
    return s3.Bucket(store, f"{bucket}/{prefix}" if prefix else bucket)


def _from_environment(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _is_endpoint(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in {"http", "https"}
        and bool(parts.hostname)
        and "@" not in parts.netloc
        and not parts.query
        and not parts.fragment
    )


def _unusable(reason: str) -> SettingsError:
    return SettingsError(f"{SETTING} {reason}; it must be {_FORM}.")
