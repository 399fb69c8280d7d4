"""Reads the settings of every process from environment variables. An empty variable counts as unset."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from heimdex_contracts.errors import SettingsError
from heimdex_contracts.pipelines import MAX_SECONDS
from heimdex_contracts.runtime import callback_settings

PREFIX: Final = "HEIMDEX_"

#: A delay of a retry policy; the same range as in a pipeline's own.
Delay = Annotated[float, msgspec.Meta(ge=0, le=MAX_SECONDS)]
#: An API key's entry: `<tenant>:<SHA-256 of the key, as hexadecimal>`.
ApiKey = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}:[0-9A-Fa-f]{64}$")]
#: An origin as a browser sends it, without a path or a trailing slash, or `*`.
Origin = Annotated[
    str,
    msgspec.Meta(pattern=r"^(\*|https?://[A-Za-z0-9._-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?)$"),
]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One field per variable: `nats_url` is HEIMDEX_NATS_URL. Durations are in seconds unless named otherwise."""

    env: str = "local"
    nats_url: str = "nats://localhost:4222"
    database_url: str = "postgresql://heimdex:heimdex@localhost:5432/heimdex"
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 8000
    mock_time_scale: Annotated[float, msgspec.Meta(ge=0, le=10_000)] = 1.0
    #: Overrides the retry policy of every pipeline; None: each pipeline's own applies.
    retry_backoff_seconds: tuple[Delay, ...] | None = None
    ack_wait_seconds: Annotated[float, msgspec.Meta(ge=0.5, le=24 * 3600)] = 10.0
    stage_concurrency: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    #: The time for which code of a stage may block the worker's event loop.
    blocked_seconds: Annotated[float, msgspec.Meta(ge=1, le=24 * 3600)] = 120.0
    stream_replicas: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    shutdown_grace_seconds: Annotated[float, msgspec.Meta(ge=0, le=24 * 3600)] = 10.0
    log_level: str = "info"
    #: The number of unfinished jobs at which the gateway rejects new ones.
    max_pending_jobs: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] = 1_000_000
    #: Days after which a job in a terminal state is deleted; 0: never.
    retention_days: Annotated[float, msgspec.Meta(ge=0, le=36_500)] = 30.0
    #: Seconds after the first refusal of a job whose type or stage no worker knows, after which the job is failed.
    unknown_after_seconds: Annotated[float, msgspec.Meta(ge=1, le=365 * 24 * 3600)] = 3600.0
    #: Modules that declare job types; each has an attribute `PIPELINES`.
    pipelines: tuple[str, ...] = ("heimdex_contracts.mock_process",)
    #: The API keys; without any, the API requires none.
    api_keys: tuple[ApiKey, ...] = ()
    #: Requests per second of each key, and optionally the burst size.
    rate_limit: tuple[Annotated[float, msgspec.Meta(gt=0, le=1_000_000)], ...] = ()
    #: The origins whose web pages may use the API (CORS).
    cors_origins: tuple[Origin, ...] = ()
    #: A file that the process touches every few seconds while it is healthy; for container health checks.
    health_file: str | None = None
    #: The secrets that sign callbacks; each adds one signature. Without any, callbacks are disabled.
    callback_secret: tuple[str, ...] = ()
    #: Host names, addresses and networks that callbacks may reach although they are not public.
    callback_allow: tuple[str, ...] = ()

    @property
    def nats_servers(self) -> list[str]:
        """The URLs of the NATS servers, one per server."""
        return [url.strip() for url in self.nats_url.split(",") if url.strip()]


_LISTS: Final = {
    "retry_backoff_seconds",
    "pipelines",
    "api_keys",
    "rate_limit",
    "cors_origins",
    "callback_allow",
    "callback_secret",
}
#: Paths of files. A relative one counts from the folder in which the process was started, wherever it changes to later.
_PATHS: Final = {"health_file"}
#: Settings whose values no error shows, because they may contain a secret or, by mistake, the API key itself.
_SECRETS: Final = {"api_keys", "callback_secret"}
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")

_FORMATS: Final[dict[str, str]] = {
    "port": "a port number from 1 to 65535",
    "mock_time_scale": "a number from 0 to 10000",
    "retry_backoff_seconds": f"delays in seconds, each from 0 to {MAX_SECONDS}, separated by commas, such as 1,2,4",
    "ack_wait_seconds": "a number of seconds from 0.5 to 86400",
    "stage_concurrency": "a whole number from 1 to 10000",
    "blocked_seconds": "a number of seconds from 1 to 86400",
    "stream_replicas": "1, or on a NATS cluster 3 or 5",
    "shutdown_grace_seconds": "a number of seconds from 0 to 86400",
    "max_pending_jobs": "a whole number from 1 to 100000000",
    "retention_days": "a number of days from 0 (never delete) to 36500",
    "unknown_after_seconds": "a number of seconds from 1 to 31536000",
    "log_level": f"one of {', '.join(_LOG_LEVELS)}",
    "nats_url": "nats://[user:password@]host[:port], several separated by commas",
    "database_url": "a libpq URI such as postgresql://user:password@host:5432/database",
    "pipelines": "names of Python modules, separated by commas",
    "api_keys": "entries <tenant>:<SHA-256 of the key in hex>, separated by commas (`heimdex key TENANT` creates one)",
    "rate_limit": "requests per second, such as 50, optionally followed by the burst size, such as 50,200",
    "cors_origins": "origins such as https://app.example.com (no path, no trailing slash), separated by commas, or *",
    "callback_secret": "whsec_ followed by the base64 of 24 to 64 random bytes; separate several secrets by commas",
    "callback_allow": "host names, addresses or networks such as 10.0.0.0/8, separated by commas",
}


Service = Literal["gateway", "stage-worker", "status-store"]
#: Settings that only these services read. The others neither validate nor hold them: most contain a secret.
_READ_BY: Final[dict[str, frozenset[Service]]] = {
    "database_url": frozenset({"gateway", "status-store"}),
    "unknown_after_seconds": frozenset({"status-store"}),
    "blocked_seconds": frozenset({"stage-worker"}),
    **dict.fromkeys(
        ("api_keys", "rate_limit", "cors_origins", "callback_secret", "callback_allow"), frozenset({"gateway"})
    ),
}


def read(environ: Mapping[str, str] | None = None, service: Service = "gateway") -> Settings:
    """Read the settings of a service from the environment; a setting that it does not read keeps its default.

    Raises SettingsError, which names the first invalid variable.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        if service not in _READ_BY.get(field.name, {service}):
            continue
        text = environ.get(PREFIX + field.name.upper(), "").strip()
        if not text:
            continue
        value: Any = os.path.abspath(text) if field.name in _PATHS else text
        if field.name in _LISTS:
            value = [part.strip() for part in text.split(",") if part.strip()]
        if not value:  # commas alone are a mistake and must not mean "no API keys required"
            raise _unusable(field.name, text)
        try:
            values[field.name] = msgspec.convert(value, field.type, strict=False)
        except msgspec.ValidationError:
            raise _unusable(field.name, text) from None
    settings = Settings(**values)
    if settings.log_level not in _LOG_LEVELS:
        raise _unusable("log_level", settings.log_level)
    if settings.stream_replicas not in (1, 3, 5):
        raise _unusable("stream_replicas", str(settings.stream_replicas))
    if not settings.nats_servers or not all(map(_is_nats_url, settings.nats_servers)):
        raise _unusable("nats_url", settings.nats_url)
    digests = [entry.rpartition(":")[2].lower() for entry in settings.api_keys]
    if len(set(digests)) < len(digests):
        raise SettingsError(f"{PREFIX}API_KEYS contains the same key twice; a key belongs to one tenant.")
    if len(settings.rate_limit) > 2 or (len(settings.rate_limit) == 2 and settings.rate_limit[1] < 1):
        raise _unusable("rate_limit", environ[f"{PREFIX}RATE_LIMIT"])
    if not _is_database_url(settings.database_url):
        raise _unusable("database_url", settings.database_url)
    for secret in settings.callback_secret:
        if not callback_settings.is_secret(secret):
            raise _unusable("callback_secret", secret)
    for entry in settings.callback_allow:
        if not callback_settings.is_allowance(entry):
            raise _unusable("callback_allow", entry)
    return settings


def _unusable(field: str, text: str) -> SettingsError:
    if field in _SECRETS:
        return SettingsError(f"{PREFIX}{field.upper()} is invalid: it must be {_FORMATS[field]}.")
    shown = re.sub(r"//[^@/]*@", "//***@", text)  # no password may reach a log
    return SettingsError(f"{PREFIX}{field.upper()} is {shown!r}, but must be {_FORMATS.get(field, 'text')}.")


def _is_nats_url(url: str) -> bool:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        return parts.scheme in {"nats", "tls", "ws", "wss"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_database_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in {"postgresql", "postgres"}
