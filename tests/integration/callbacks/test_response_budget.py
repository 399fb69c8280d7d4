"""The limits of a response: enough for any receiver, too low to keep the gateway busy. With and without TLS."""

import re
import socket
import ssl
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

import msgspec
import pytest
import trustme

from heimdex_callbacks.resolver import Resolver
from heimdex_callbacks.sender import Answer, Sender, body_of
from heimdex_callbacks.url import parse_url
from heimdex_contracts.runtime.outbound.address_policy import AddressPolicy
from tests.support import receiver
from tests.support.callback_attempts import END, Post
from tests.support.receiver import SECRET, Stranger
from tests.support.waiting import eventually

HARNESS = Path(receiver.__file__).parent
#: Of the event loop's thread, for one try: over ten times what it takes, and far below what a flood took.
MAX_CPU_SECONDS = 0.3
TOO_MUCH = re.compile(
    r"The receiver sent more than (32 KiB|256 pieces, lines and repeated blanks) before its response was complete\."
)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
DELIVERED = Answer()

Say = Callable[[socket.socket], None]


#: An authority of this run alone, and what it certifies: no key is kept.
AUTHORITY = trustme.CA()
CERTIFIED = AUTHORITY.issue_cert("127.0.0.1", "localhost")


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The gateway trusts the receiver's authority."""
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


def tls(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CERTIFIED.configure_cert(context)
    context.maximum_version = version
    return context


def saying(*once: bytes, forever: bytes = b"", pause: float = 0.0) -> Say:
    """Send each of these in a piece of its own (a TLS record), and repeat the last one until the caller disconnects."""

    def say(connection: socket.socket) -> None:
        for piece in once:
            connection.sendall(piece)
            time.sleep(pause)
        for piece in repeat(forever) if forever else ():
            connection.sendall(piece)
            time.sleep(pause)

    return say


async def priced(post: Post, stranger: Stranger, scheme: str = "") -> Answer:
    """Return the result of one attempt, which must not have blocked the event loop."""
    began = time.thread_time()
    answer = await post(stranger.url.replace("http:", f"{scheme}:") if scheme else stranger.url)
    assert time.thread_time() - began < MAX_CPU_SECONDS
    return answer


#: What never becomes an answer: what is sent once, and what then without end.
FLOODS = {
    "100 Continue": (b"", CONTINUE * 100),
    "the shortest 100": (b"", b"HTTP/1.1 100\n\n" * 100),
    "each 100 in a piece of its own": (b"", CONTINUE),
    "early hints with headers": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n\r\n" * 100),
    "a 102 whose body is another": (b"", b"HTTP/1.1 102 Processing\r\nContent-Length: 25\r\n\r\n" + CONTINUE),
    "a 100 with a long reason": (b"", b"HTTP/1.1 100 " + b"go on " * 500 + b"\r\n\r\n"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-Header: x\r\n" * 100),
    "long headers": (b"HTTP/1.1 200 OK\r\n", b"X-Header: " + b"x" * 1000 + b"\r\n"),
    "one header": (b"HTTP/1.1 200 OK\r\nX-Header: ", b"x" * 1000),
    "one header in many lines": (b"HTTP/1.1 200 OK\r\nX-Header: x\r\n", b" x\r\n" * 100),
    "one header of nothing but blanks": (b"HTTP/1.1 200 OK\r\nX-Header:", b" " * 1000),
    "a header name": (b"HTTP/1.1 200 OK\r\n", b"x" * 1000),
    "a reason": (b"HTTP/1.1 200 ", b"because " * 100),
    "a word": (b"", b"H" * 1000),
}


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_a_receiver_that_sends_without_a_response_is_abandoned_at_the_limit(
    post: Post, flood: str, secure: bool
) -> None:
    once, forever = FLOODS[flood]
    with Stranger(saying(once, forever=forever), tls() if secure else None) as stranger:
        answer = await priced(post, stranger)
    assert TOO_MUCH.fullmatch(answer.error or ""), answer
    assert not answer.final


async def test_a_response_that_arrives_byte_by_byte_is_abandoned_before_the_time_out(post: Post) -> None:
    with Stranger(saying(b"HTTP/1.1 200 OK\r\nX-Header: ", forever=b"x", pause=0.001)) as stranger:
        answer = await post(stranger.url)
    assert TOO_MUCH.fullmatch(answer.error or ""), answer


@pytest.mark.parametrize(
    "bomb",
    [
        b"HTTP/1.1 200 OK\r\nX-Header:" + b" " * 16_000 + b"\0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Header:" + b"\t " * 8_000 + b"\0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Header:" + b"\n " * 8_000 + b"\0\r\n\r\n",
    ],
    ids=["blanks", "tabs", "folded"],
)
async def test_a_line_that_would_take_seconds_to_parse_is_not_parsed(post: Post, bomb: bytes) -> None:
    with Stranger(saying(bomb)) as stranger:
        answer = await priced(post, stranger)
    assert TOO_MUCH.fullmatch(answer.error or ""), answer


async def test_no_chunk_after_the_response_takes_seconds_to_parse(post: Post) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with Stranger(saying(head, b"1;" + b" " * 16_000 + b"\n\r\n")) as stranger:
        assert await priced(post, stranger) == DELIVERED


#: Bodies of a 200, of which nothing depends: what is sent once, and what then without end.
BODIES = {
    "chunks of one byte": (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 100),
    "chunks of one byte, one by one": (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "trailers": (b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Trailer: x\r\n" * 100),
    "a chunk's extension": (b"Transfer-Encoding: chunked\r\n\r\n1", b";x" * 100),
    "a length of many digits": (b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 1000),
    "a long body": (b"Content-Length: 100000000\r\n\r\n", b"a" * 1000),
    "a body of lines": (b"Content-Length: 100000000\r\n\r\n", b"a\n" * 1000),
    "a body of blanks": (b"Content-Length: 100000000\r\n\r\n", b" " * 1000),
    "a body until the end": (b"\r\n", b"a" * 1000),
    "answers": (b"Content-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_a_response_counts_whatever_its_body_is(post: Post, body: str, secure: bool) -> None:
    once, forever = BODIES[body]
    with Stranger(saying(b"HTTP/1.1 200 OK\r\n" + once, forever=forever), tls() if secure else None) as stranger:
        assert await priced(post, stranger) == DELIVERED


#: Heads that are large, and not too large, in the pieces in which they are sent.
HEADS: dict[str, list[bytes]] = {
    "headers, one by one": [
        b"HTTP/1.1 200 OK\r\n",
        *(b"X-Header-%d: its value\r\n" % number for number in range(70)),
        b"Content-Length: 0\r\n\r\n",
    ],
    "a long header": [b"HTTP/1.1 200 OK\r\nContent-Security-Policy:" + b" https://x.example" * 1000 + b"\r\n\r\n"],
    "what is ahead of an answer": [
        CONTINUE,
        b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
    "in one piece with a body of blanks and lines": [b"HTTP/1.1 200 OK\r\n\r\n" + b"\n    " * 200],
    "small pieces": [bytes([byte]) for byte in b"HTTP/1.1 200 OK\r\nServer: very small\r\n\r\n"],
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_a_large_response_counts(post: Post, head: str, secure: bool) -> None:
    with Stranger(saying(*HEADS[head]), tls() if secure else None) as stranger:
        assert await post(stranger.url) == DELIVERED


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_tls_receiver_is_called_and_trusted_only_by_its_certificate(
    post: Post, version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(1)
    monkeypatch.delenv("SSL_CERT_FILE")
    stranger_to_it = Sender([SECRET], AddressPolicy(["127.0.0.0/8"]), resolver, 10)
    answer = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
    with Stranger(answer, tls(version)) as stranger:
        assert await post(stranger.url) == DELIVERED
        refused = await stranger_to_it.post(parse_url(stranger.url), END)
    assert (refused.error or "").startswith("The receiver cannot be reached: "), refused
    assert "certificate verify failed" in (refused.error or "")
    await stranger_to_it.close()
    resolver.close()


async def test_a_large_job_object_arrives_complete_over_tls() -> None:
    resolver = Resolver(1)
    poster = Sender([SECRET], AddressPolicy(["127.0.0.0/8"]), resolver, 10)
    end = msgspec.structs.replace(END, result=msgspec.Raw(b'{"large":"%b"}' % (b"x" * 200_000)))
    with Stranger(saying(b"HTTP/1.1 204 No Content\r\n\r\n"), tls()) as stranger:
        assert await poster.post(parse_url(stranger.url), end) == DELIVERED
    assert stranger.bodies == [body_of(end)]
    await poster.close()
    resolver.close()


async def test_a_receiver_may_end_tls_without_notice_after_its_response(post: Post) -> None:
    def say(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        with socket.socket(fileno=connection.detach()) as bare:
            bare.sendall(b"this is no TLS any more")

    with Stranger(say, tls()) as stranger:
        assert await post(stranger.url) == DELIVERED


async def test_a_receiver_that_disconnects_during_the_handshake_cannot_be_reached(post: Post) -> None:
    with Stranger(lambda connection: connection.recv(1), deaf=True) as stranger:
        answer = await priced(post, stranger, "https")
    assert answer == Answer("The receiver cannot be reached: it closed the connection during the TLS handshake.")


async def test_a_handshake_in_pieces_of_one_byte_is_abandoned(post: Post) -> None:
    with Stranger(saying(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb", forever=b"\x03", pause=0.001), deaf=True) as stranger:
        answer = await priced(post, stranger, "https")
    assert TOO_MUCH.fullmatch(answer.error or ""), answer


async def test_a_key_exchange_over_a_finite_field_is_refused_before_it_costs_much(post: Post) -> None:
    flights: list[bytes] = []

    def say(connection: socket.socket) -> None:
        hello = connection.recv(65536)
        flights.append(hello)
        session = hello[43 : 44 + hello[43]]
        # A HelloRetryRequest of TLS 1.3 that asks for ffdhe8192.
        body = (
            b"\x03\x03"
            + bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
            + session
            + b"\x13\x02\x00\x00\x0c\x00\x2b\x00\x02\x03\x04\x00\x33\x00\x02\x01\x04"
        )
        message = b"\x02" + len(body).to_bytes(3, "big") + body
        connection.sendall(b"\x16\x03\x03" + len(message).to_bytes(2, "big") + message)
        flights.append(connection.recv(65536))

    with Stranger(say, deaf=True) as stranger:
        answer = await priced(post, stranger, "https")
        await eventually(lambda: len(flights) == 2)
    assert answer.error == (
        "The receiver cannot be reached: "
        "it asks for a TLS key exchange over a finite field (ffdhe), not over an elliptic curve."
    )
    assert flights[1] == b""


async def test_the_ciphers_of_tls_1_2_with_a_finite_field_are_not_offered(post: Post) -> None:
    context = tls(ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("DHE")
    context.load_dh_params(str(HARNESS / "ffdhe2048.pem"))
    with Stranger(saying(b"HTTP/1.1 204 No Content\r\n\r\n"), context) as stranger:
        answer = await post(stranger.url)
    assert (answer.error or "").startswith("The receiver cannot be reached: "), answer
