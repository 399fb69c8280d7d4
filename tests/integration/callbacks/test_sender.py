"""One attempt to call back: the address is checked, the request signed; no redirect is followed, no proxy used."""

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, ip_address
from typing import Any

import httpcore
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from heimdex_callbacks.resolver import Resolver
from heimdex_callbacks.sender import Answer, Sender
from heimdex_callbacks.transport import CheckedBackend
from heimdex_callbacks.url import parse_url
from heimdex_contracts.runtime.outbound.address_policy import Address, AddressForbidden, AddressPolicy
from tests.support.callback_attempts import END, Post, sending
from tests.support.links import reset
from tests.support.receiver import SECRET, Receiver
from tests.support.services import ROOT


class Rebinding(Resolver):
    """Resolves each request to the next list of addresses."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    async def addresses(self, host: str, port: int) -> list[Address]:
        return [ip_address(text) for text in self.answers.pop(0)]


class Connector(httpcore.AsyncNetworkBackend):
    """Records the addresses of the connections without connecting; the first `refusing` are refused."""

    def __init__(self, refusing: int = 0) -> None:
        self.places: list[tuple[str, int, float | None]] = []
        self._refusing = refusing

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.places.append((host, port, timeout))
        if len(self.places) <= self._refusing:
            raise httpcore.ConnectError("refused")
        return httpcore.AsyncMockStream([])


OTHER_SECRET = "whsec_YW5vdGhlciBzZWNyZXQgb2YgdGhlIHRlc3Rz"


async def test_the_body_is_the_job_object_under_a_signature_that_standard_webhooks_verifies(
    post: Post, receiver: Receiver
) -> None:
    assert await post(receiver.url) == Answer()
    (call,) = receiver.calls
    assert list(call.job) == ["id", "status", "stage", "progress", "result", "error", "created_at", "updated_at"]
    assert (call.job["id"], call.job["status"], call.job["progress"]) == (END.job_id, "completed", 100)
    assert call.id == f"{END.job_id}-{END.step}"
    assert abs(int(call.headers["webhook-timestamp"]) - time.time()) < 60
    for changed in (
        {"webhook-id": "another"},
        {"webhook-timestamp": str(int(call.headers["webhook-timestamp"]) - 1)},
        {"webhook-signature": "v1,AAAA"},
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(call.body, call.headers | changed)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(call.body + b" ", call.headers)


def documented_verification() -> Callable[[str, dict[str, str], bytes], bool]:
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(next(code for code in shown if "def is_genuine" in code), names)
    return names["is_genuine"]  # type: ignore[no-any-return]


async def test_with_two_secrets_a_receiver_may_verify_with_either(receiver: Receiver) -> None:
    resolver = Resolver(1)
    poster = Sender([OTHER_SECRET, SECRET], AddressPolicy(["127.0.0.0/8"]), resolver, 10)
    assert await poster.post(parse_url(receiver.url), END) == Answer()
    (call,) = receiver.calls
    for secret in (SECRET, OTHER_SECRET):
        assert Webhook(secret).verify(call.body, call.headers)
        assert documented_verification()(secret, call.headers, call.body)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_bm9ib2R5J3Mgc2VjcmV0IGFuZCBub25lIG9mIHRoZXNl").verify(call.body, call.headers)
    await poster.close()
    resolver.close()


async def test_the_documented_verification_accepts_a_call_and_refuses_a_changed_one(
    post: Post, receiver: Receiver
) -> None:
    is_genuine = documented_verification()
    await post(receiver.url)
    (call,) = receiver.calls
    assert is_genuine(SECRET, call.headers, call.body)
    assert not is_genuine(SECRET, call.headers, call.body + b" ")
    assert not is_genuine("whsec_YW5vdGhlciBzZWNyZXQgb2YgMjQrIGJ5dGVz", call.headers, call.body)
    old = {"webhook-timestamp": str(int(call.headers["webhook-timestamp"]) - 400)}
    assert not is_genuine(SECRET, call.headers | old, call.body)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_means_delivered(post: Post, receiver: Receiver, status: int) -> None:
    receiver.answers = [status]
    assert await post(receiver.url) == Answer()


@pytest.mark.parametrize("status", [400, 401, 404, 409, 429, 500, 503, 599])
async def test_any_other_status_is_an_error_that_names_it(post: Post, receiver: Receiver, status: int) -> None:
    receiver.answers = [status]
    assert await post(receiver.url) == Answer(f"The receiver answered {status}.")


async def test_a_410_is_permanent(post: Post, receiver: Receiver) -> None:
    receiver.answers = [410]
    answer = await post(receiver.url)
    assert answer.final
    assert answer.error is not None
    assert "410" in answer.error


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(post: Post, receiver: Receiver, status: int) -> None:
    receiver.answers = [(status, {"Location": f"http://127.0.0.1:{receiver.port}/secret"})]
    answer = await post(receiver.url)
    assert answer == Answer(f"The receiver answered {status}; a redirect is not followed.")
    assert [call.path for call in receiver.calls] == ["/hooks?for=tests"]


async def test_no_proxy_is_used(post: Post, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert await post(receiver.url) == Answer()
        assert not proxy.calls


async def test_a_receiver_that_is_down_cannot_be_reached(post: Post) -> None:
    with Receiver() as gone:
        url = gone.url
    answer = await post(url)
    assert answer.error is not None
    assert answer.error.startswith("The receiver cannot be reached: ")
    assert not answer.final


async def test_a_receiver_without_tls_cannot_be_reached_over_https(post: Post, receiver: Receiver) -> None:
    answer = await post(receiver.url.replace("http://", "https://"))
    assert answer.error is not None
    assert answer.error.startswith("The receiver cannot be reached: ")


async def test_a_silent_receiver_is_abandoned_after_the_time_out(receiver: Receiver) -> None:
    over = threading.Event()
    receiver.answers = [lambda _: over.wait(60) and 204]
    async with sending(timeout_seconds=0.3) as post:
        try:
            answer = await asyncio.wait_for(post(receiver.url), 30)
        finally:
            over.set()
    assert answer == Answer("The receiver did not answer within 0.3 s.")


async def raw(*chunks: bytes, forever: bytes = b"") -> tuple[asyncio.Server, str]:
    """A server that sends these pieces to each client, and repeats the last one."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            # What is left unread when a connection is closed makes a reset of it.
            length = re.search(rb"(?i)content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            for chunk in chunks:
                writer.write(chunk)
            while forever:
                writer.write(forever)
                await writer.drain()
                await asyncio.sleep(0.001)
            await writer.drain()
            writer.close()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def test_a_response_that_is_not_http_is_an_error_in_one_printable_line(post: Post) -> None:
    server, url = await raw(b"SSH-2.0-OpenSSH\x00\x1b[31m\r\n")
    async with server:
        answer = await post(url)
    assert answer.error is not None
    assert answer.error.startswith("The receiver did not answer in HTTP: ")
    assert answer.error.isprintable()


async def test_a_broken_connection_is_reported_with_the_systems_error_text(post: Post) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reset(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        answer = await post(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert answer == Answer("The receiver cannot be reached: Connection reset by peer.")


async def test_an_endless_body_does_not_delay_the_result(post: Post) -> None:
    server, url = await raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", forever=b"4\r\nabcd\r\n")
    async with server:
        assert await asyncio.wait_for(post(url), 30) == Answer()


async def test_a_body_that_never_arrives_does_not_delay_the_result() -> None:
    server, url = await raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b"HTTP", forever=b"")
    async with server, sending(read_seconds=0.1) as post:
        assert await asyncio.wait_for(post(url), 30) == Answer()


async def test_an_endless_head_is_abandoned() -> None:
    server, url = await raw(b"HTTP/1.1 200 OK\r\n", forever=b"X-Header: " + b"x" * 1000 + b"\r\n")
    async with server, sending(timeout_seconds=5.0) as post:
        answer = await asyncio.wait_for(post(url), 30)
    assert answer.error is not None


async def test_a_name_that_resolves_to_this_machine_is_refused_at_the_connection(receiver: Receiver) -> None:
    resolver = Resolver(1)
    # No name of this machine's is in the usual list of names that are refused without looking them up.
    name = "localhost4.localdomain4"
    try:
        socket.getaddrinfo(name, 80)
    except OSError:
        resolver = Rebinding(["127.0.0.1"])
    poster = Sender([SECRET], AddressPolicy(), resolver, 10)
    for host in (name, "localhost", "127.0.0.1"):
        answer = await poster.post(parse_url(f"http://{host}:{receiver.port}/"), END)
        assert answer.error is not None
        assert answer.error.startswith("The callback_url must ")
        assert not answer.final, "who may be called, and what a name means, can change within the day"
    assert not receiver.calls
    await poster.close()


async def test_a_name_is_resolved_and_checked_again_for_each_connection() -> None:
    connector = Connector()
    backend = CheckedBackend(AddressPolicy(), Rebinding(["93.184.216.34"], ["127.0.0.1"]), connector)
    await backend.connect_tcp("rebinding.example", 443)
    with pytest.raises(AddressForbidden):
        await backend.connect_tcp("rebinding.example", 443)
    assert connector.places == [("93.184.216.34", 443, None)], "connected to the address, not to the name"


@pytest.mark.parametrize(
    "private", ["10.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fe80::1", "64:ff9b::a00:1"]
)
async def test_one_forbidden_address_of_many_forbids_the_name(private: str) -> None:
    connector = Connector()
    backend = CheckedBackend(AddressPolicy(), Rebinding(["93.184.216.34", private]), connector)
    with pytest.raises(AddressForbidden):
        await backend.connect_tcp("mixed.example", 443)
    assert not connector.places


async def test_the_next_address_is_tried_when_one_does_not_connect_within_its_share_of_the_time() -> None:
    connector = Connector(refusing=1)
    addresses = ["2606:2800:220:1::1", "93.184.216.34", "93.184.216.35", "93.184.216.36"]
    await CheckedBackend(AddressPolicy(), Rebinding(addresses), connector).connect_tcp("many.example", 443, 9.0)
    assert connector.places == [("2606:2800:220:1::1", 443, 3.0), ("93.184.216.34", 443, 3.0)]
    connector = Connector(refusing=9)
    with pytest.raises(httpcore.ConnectError):
        await CheckedBackend(AddressPolicy(), Rebinding(addresses), connector).connect_tcp("many.example", 443, 9.0)
    assert len(connector.places) == 3


async def test_a_name_that_is_allowed_may_have_any_address() -> None:
    connector = Connector()
    backend = CheckedBackend(AddressPolicy(["hooks.corp"]), Rebinding(["10.0.0.1"]), connector)
    await backend.connect_tcp("hooks.corp", 8080)
    assert connector.places == [("10.0.0.1", 8080, None)]


async def test_at_most_64_addresses_of_a_name_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (str(IPv4Address(0x08000000 + n)), 80)) for n in range(4000)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: many)
    resolver = Resolver(1)
    addresses = await resolver.addresses("many.example", 80)
    resolver.close()
    assert addresses == [ip_address(0x08000000 + n) for n in range(64)]
