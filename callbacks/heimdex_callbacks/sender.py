"""Makes one attempt: POSTs the signed job object and classifies the response. Redirects and proxies are not used."""

import asyncio
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import httpcore
import msgspec
from standardwebhooks import Webhook

from heimdex_callbacks.metered_stream import without_finite_fields
from heimdex_callbacks.resolver import Resolver, Unresolved
from heimdex_callbacks.response_budget import Overspent
from heimdex_callbacks.transport import CheckedBackend
from heimdex_callbacks.url import Receiver
from heimdex_contracts import lifecycle
from heimdex_contracts.job_object import job_object
from heimdex_contracts.messages import End
from heimdex_contracts.runtime import micro
from heimdex_contracts.runtime.outbound.address_policy import AddressForbidden, AddressPolicy

#: Time-out of a whole attempt: look-up, connection and response.
TIMEOUT_SECONDS: Final = 15.0
CONNECT_SECONDS: Final = 10.0
#: This much of a response body is read and discarded, because some receivers treat an early close as an error.
MAX_READ_BYTES: Final = 4096
READ_SECONDS: Final = 1.0
GONE: Final = 410
#: Of the attempts that are due at the same time, this many start before other tasks get the event loop.
MAX_STARTS_AT_ONCE: Final = 8
#: Errors of reading a body. They are ignored: the status alone is the result.
_BODY_ERRORS: Final = (
    TimeoutError,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    ssl.SSLError,
    Overspent,
)


class Answer(msgspec.Struct, frozen=True):
    """The result of an attempt. error: None if it was delivered; final: no further attempt must be made."""

    error: str | None = None
    final: bool = False


def webhook_id(end: End) -> str:
    """The `webhook-id` of a terminal event: the same on every attempt, so that a receiver recognizes a repeat."""
    return f"{end.job_id}-{end.step}"


def body_of(end: End) -> bytes:
    """The request body: the job object with its eight keys, as of this terminal event."""
    return msgspec.json.encode(job_object(lifecycle.snapshot(end)))


class Sender:
    """Makes the attempts of one gateway.

    `secrets`: each is `whsec_` followed by base64. Every request is signed with all of them, so that a receiver needs
    only one. `most_at_once`: the maximum number of concurrent connections. `timeout_seconds`: as TIMEOUT_SECONDS.
    `read_seconds`: the time limit of reading a response body.
    """

    def __init__(
        self,
        secrets: Sequence[str],
        allowed: AddressPolicy,
        resolver: Resolver,
        most_at_once: int,
        timeout_seconds: float = TIMEOUT_SECONDS,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._read_seconds = read_seconds
        self._webhooks = [Webhook(secret) for secret in secrets]
        self._agent = f"heimdex/{micro.package_version()}"
        trusted = without_finite_fields(httpcore.default_ssl_context())
        # Trust the certificate authorities of this machine and of SSL_CERT_FILE, in addition to httpcore's own.
        trusted.load_default_certs(ssl.Purpose.SERVER_AUTH)
        self._backend = CheckedBackend(allowed, resolver)
        # Each call opens a new connection, because the receiver may have closed a kept one in the meantime.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trusted,
            max_connections=most_at_once,
            max_keepalive_connections=0,
            network_backend=self._backend,
        )
        self._starting = asyncio.Semaphore(MAX_STARTS_AT_ONCE)

    async def post(self, receiver: Receiver, end: End) -> Answer:
        """Make one attempt, within the time-out. A failure of the receiver is returned as an Answer."""
        async with self._starting:
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._post(receiver, end)
        except (TimeoutError, httpcore.TimeoutException):
            return Answer(f"The receiver did not answer within {self._timeout_seconds:g} s.")
        except AddressForbidden as error:
            return Answer(f"The callback_url {error}.")
        except Overspent as error:
            return Answer(str(error))
        except Unresolved as error:
            return Answer(f"The receiver cannot be reached: {error}.")
        except (httpcore.NetworkError, ssl.SSLError) as error:
            return Answer(f"The receiver cannot be reached: {_one_line(error)}.")
        except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            return Answer(f"The receiver did not answer in HTTP: {_one_line(error)}.")

    async def close(self) -> None:
        """Close all connections and stop the handshake thread."""
        await self._pool.aclose()
        self._backend.close()

    async def _post(self, receiver: Receiver, end: End) -> Answer:
        body = body_of(end)
        url = httpcore.URL(
            scheme=receiver.scheme, host=receiver.host, port=receiver.port, target=receiver.target.encode()
        )
        most = self._timeout_seconds
        timeouts = {"connect": CONNECT_SECONDS, "read": most, "write": most, "pool": 1.0}
        headers = self._headers(receiver, webhook_id(end), body)
        extensions = {"timeout": timeouts}
        async with self._pool.stream("POST", url, headers=headers, content=body, extensions=extensions) as response:
            answer = _answer_for(response.status)
            with suppress(*_BODY_ERRORS):
                async with asyncio.timeout(self._read_seconds):
                    read = 0
                    async for chunk in response.aiter_stream():
                        read += len(chunk)
                        if read > MAX_READ_BYTES:
                            break
        return answer

    def _headers(self, receiver: Receiver, message_id: str, body: bytes) -> list[tuple[str, str]]:
        now = datetime.fromtimestamp(int(time.time()), UTC)
        return [
            ("Host", receiver.authority),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            ("Accept", "*/*"),
            ("User-Agent", self._agent),
            ("webhook-id", message_id),
            ("webhook-timestamp", str(int(now.timestamp()))),
            ("webhook-signature", " ".join(hook.sign(message_id, now, body.decode()) for hook in self._webhooks)),
        ]


def _answer_for(status: int) -> Answer:
    if 200 <= status < 300:
        return Answer()
    if status == GONE:
        return Answer("The receiver answered 410 (Gone): it wants no further attempts.", final=True)
    if 300 <= status < 400:
        return Answer(f"The receiver answered {status}; a redirect is not followed.")
    return Answer(f"The receiver answered {status}.")


def _one_line(error: Exception) -> str:
    """The cause of an error in one printable line of at most 200 characters. The text may come from the receiver."""
    cause: BaseException | None = error
    while cause is not None and not str(cause):
        cause = cause.__cause__ or cause.__context__
    message = (getattr(cause, "strerror", None) or str(cause)) if cause is not None else "the connection broke"
    text = " ".join(message[:1000].split())
    return "".join(letter for letter in text if letter.isprintable())[:200].rstrip(".")
