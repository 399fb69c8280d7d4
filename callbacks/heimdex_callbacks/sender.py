"""Makes one try: a signed POST of the job object, and what came of it. Follows no redirect and asks no proxy."""

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

#: For all of a try: the look-up, the connection, the answer.
TIMEOUT_SECONDS: Final = 15.0
CONNECT_SECONDS: Final = 10.0
#: So much of an answer's body is read, and thrown away, for a receiver that would take a sudden end for an error.
MAX_READ_BYTES: Final = 4096
READ_SECONDS: Final = 1.0
GONE: Final = 410
#: Of the tries that are due together, so many are begun before the event loop goes round.
BEGUN_AT_ONCE: Final = 8
#: What may come of reading a body, of which nothing depends.
_OF_THE_BODY: Final = (
    TimeoutError,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    ssl.SSLError,
    Overspent,
)


class Answer(msgspec.Struct, frozen=True):
    """What came of a try. error: None where it was taken; final: the receiver wants no other try."""

    error: str | None = None
    final: bool = False


def webhook_id(end: End) -> str:
    """One for each end of each job, the same on every try: how a receiver knows a repeat."""
    return f"{end.job_id}-{end.step}"


def body_of(end: End) -> bytes:
    """The eight-key job object, as it was at this end."""
    return msgspec.json.encode(job_object(lifecycle.snapshot(end)))


class Sender:
    """Of one gateway. `secrets`: each `whsec_` and base64. A receiver may know any one of them."""

    def __init__(self, secrets: Sequence[str], allowed: AddressPolicy, resolver: Resolver, most_at_once: int) -> None:
        self._webhooks = [Webhook(secret) for secret in secrets]
        self._agent = f"heimdex/{micro.package_version()}"
        trusted = without_finite_fields(httpcore.default_ssl_context())
        # Beside the usual authorities those of this machine, and of SSL_CERT_FILE.
        trusted.load_default_certs(ssl.Purpose.SERVER_AUTH)
        self._backend = CheckedBackend(allowed, resolver)
        # Each call has a connection of its own: one that was kept may have been closed by the other side meanwhile.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trusted,
            max_connections=most_at_once,
            max_keepalive_connections=0,
            network_backend=self._backend,
        )
        self._beginning = asyncio.Semaphore(BEGUN_AT_ONCE)

    async def post(self, receiver: Receiver, end: End) -> Answer:
        """One try, within TIMEOUT_SECONDS."""
        async with self._beginning:
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await self._post(receiver, end)
        except (TimeoutError, httpcore.TimeoutException):
            return Answer(f"The receiver did not answer within {TIMEOUT_SECONDS:g} s.")
        except AddressForbidden as error:
            return Answer(f"The callback_url {error}.")
        except Overspent as error:
            return Answer(str(error))
        except Unresolved as error:
            return Answer(f"The receiver cannot be reached: {error}.")
        except (httpcore.NetworkError, ssl.SSLError) as error:
            return Answer(f"The receiver cannot be reached: {_said(error)}.")
        except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            return Answer(f"The receiver did not answer in HTTP: {_said(error)}.")

    async def close(self) -> None:
        """Drop what is open."""
        await self._pool.aclose()
        self._backend.close()

    async def _post(self, receiver: Receiver, end: End) -> Answer:
        body = body_of(end)
        url = httpcore.URL(
            scheme=receiver.scheme, host=receiver.host, port=receiver.port, target=receiver.target.encode()
        )
        timeouts = {"connect": CONNECT_SECONDS, "read": TIMEOUT_SECONDS, "write": TIMEOUT_SECONDS, "pool": 1.0}
        headers = self._headers(receiver, webhook_id(end), body)
        extensions = {"timeout": timeouts}
        async with self._pool.stream("POST", url, headers=headers, content=body, extensions=extensions) as response:
            answer = _judged(response.status)
            with suppress(*_OF_THE_BODY):
                async with asyncio.timeout(READ_SECONDS):
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
            ("webhook-signature", " ".join(one.sign(message_id, now, body.decode()) for one in self._webhooks)),
        ]


def _judged(status: int) -> Answer:
    if 200 <= status < 300:
        return Answer()
    if status == GONE:
        return Answer("The receiver answered 410 (Gone): it wants no more of this.", final=True)
    if 300 <= status < 400:
        return Answer(f"The receiver answered {status}; a redirect is not followed.")
    return Answer(f"The receiver answered {status}.")


def _said(error: Exception) -> str:
    """The cause in one line, which may be a stranger's words."""
    cause: BaseException | None = error
    while cause is not None and not str(cause):
        cause = cause.__cause__ or cause.__context__
    said = (getattr(cause, "strerror", None) or str(cause)) if cause is not None else "the connection broke"
    text = " ".join(said[:1000].split())
    return "".join(letter for letter in text if letter.isprintable())[:200].rstrip(".")
