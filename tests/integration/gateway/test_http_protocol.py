"""What the gateway's HTTP protocol refuses before a request is complete: on real sockets, with shorter time limits."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import uvicorn

from heimdex_gateway.server.http_protocol import BoundedHttpProtocol
from tests.support.waiting import eventually

GET = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n"
CHUNKED = b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


class Hasty(BoundedHttpProtocol):
    """The same protocol with shorter time limits, still long enough for a slow machine to send its request."""

    head_seconds = 1.0
    body_seconds = 1.0


class Server:
    """Answers with the body that it received; on the path /slow it first waits for `gate`."""

    def __init__(self) -> None:
        self.port = 0
        self.gate = asyncio.Event()
        self.answered: list[str] = []
        self.connections: set[Any] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (event := await receive())["type"] == "http.request":
            body += event["body"]
            if not event["more_body"]:
                break
        else:
            return  # the caller has gone
        if scope["path"] == "/slow":
            await self.gate.wait()
        self.answered.append(scope["path"])
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def ask(self, *pieces: bytes) -> tuple["Caller", bytes]:
        """Send these pieces one after the other, and read until the connection is closed."""
        caller = await self.call()
        for piece in pieces:
            await caller.send(piece)
        return caller, await caller.rest()

    async def call(self) -> "Caller":
        return Caller(*await asyncio.open_connection("127.0.0.1", self.port))


class Caller:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send this. The other side may have closed the connection meanwhile."""
        with contextlib.suppress(ConnectionError, RuntimeError):
            self.writer.write(data)
            await self.writer.drain()

    async def rest(self) -> bytes:
        """Return everything that is received until the other side has closed the connection."""
        return await asyncio.wait_for(self.reader.read(), 30)


@pytest_asyncio.fixture(params=[Hasty])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    app = Server()
    config = uvicorn.Config(
        app, http=request.param, ws="none", lifespan="off", port=0, log_config=None, timeout_graceful_shutdown=1
    )
    running = uvicorn.Server(config)
    running.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    serving = asyncio.create_task(running.serve())
    await eventually(lambda: running.started)
    app.port = running.servers[0].sockets[0].getsockname()[1]
    app.connections = running.server_state.connections
    yield app
    app.gate.set()
    running.should_exit = True
    await serving


#: Where times must not matter.
patient = pytest.mark.parametrize("server", [BoundedHttpProtocol], indirect=True)


def refusal(answer: bytes, status: int) -> str:
    """Return the sentence of the last response, which must be this error and end the connection."""
    head, _, body = answer[answer.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"content-type: application/json" in head
    assert b"connection: close" in head
    assert b"content-length: %d" % len(body) in head
    return str(msgspec.json.decode(body)["detail"])


@patient
@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /a HTTP/1.1\r\nx: " + b"a" * 100_000 + b"\r\n\r\n"],
        [b"GET /a HTTP/1.1\r\nx: ", *[b"a" * 65_536] * 100],
        [b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n"],
        [b"GET /a HTTP/1.1\r\n", *[b"x: y\r\n" * 10_000] * 100],
        [CHUNKED + b"1\r\nx\r\n0\r\n", *[b"x: y\r\n" * 10_000] * 100],
        [CHUNKED + b"1;" + b"e" * 100, *[b"e" * 65_536] * 100],
        [*[b"\r\n" * 20_000] * 100],
    ],
    ids=["value", "endless value", "path", "endless headers", "endless trailers", "endless extension", "only newlines"],
)
async def test_a_head_over_the_limits_is_refused(server: Server, pieces: list[bytes]) -> None:
    _, answer = await server.ask(*pieces)
    assert "over 32 KiB" in refusal(answer, 431)
    assert not server.answered


@patient
async def test_a_head_just_within_the_limits_is_accepted_in_pieces_of_any_size(server: Server) -> None:
    request = b"GET /a HTTP/1.1\r\nconnection: close\r\nx: ".ljust(32_500, b"a") + b"\r\n\r\n"
    for size in (40_000, 20_000, 1_000):
        _, answer = await server.ask(*(request[at : at + size] for at in range(0, len(request), size)))
        assert answer.startswith(b"HTTP/1.1 200 ")


@patient
async def test_large_bodies_do_not_count_as_large_heads(server: Server) -> None:
    body = b"x" * 500_000
    caller = await server.call()
    for _ in range(3):
        await caller.send(b"POST /b HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await caller.send(CHUNKED + b"".join(b"1\r\nx\r\n" for _ in range(50_000)) + b"0\r\n\r\n")
    await caller.send(b"GET /a HTTP/1.1\r\nconnection: close\r\n\r\n")
    answer = await caller.rest()
    assert answer.count(b"HTTP/1.1 200 ") == 7


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"GET", "head"),
        (b"GET /a HTTP/1.1\r\nhost: x\r\n", "head"),
        (POST, "body"),
        (POST + b"12345", "body"),
        (CHUNKED + b"1\r\nx\r\n", "body"),
        (GET + b"GET", "head"),
        (GET + POST, "body"),
    ],
)
async def test_an_incomplete_request_is_answered_with_408_and_the_connection_closed(
    server: Server, sent: bytes, says: str
) -> None:
    _, answer = await server.ask(sent)
    assert says in refusal(answer, 408)
    assert server.answered == (["/a"] if sent.startswith(GET) else [])


@patient
@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"nonsense\r\n\r\n", "not valid HTTP"),
        (b"FOO /a HTTP/1.1\r\n\r\n", "method"),
        (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", "percent-encoded"),
        (b"GET /a?\xc3\xa4=1 HTTP/1.1\r\n\r\n", "percent-encoded"),
        (b"GET http://[ HTTP/1.1\r\n\r\n", "URL"),
        (b"POST /b HTTP/1.1\r\ncontent-length: abc\r\n\r\n", "Content-Length"),
        (CHUNKED + b"zz\r\n", "chunk"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "not valid HTTP"),
        (GET + b"nonsense\r\n\r\n", "not valid HTTP"),
    ],
)
async def test_a_malformed_request_is_refused_with_a_sentence_in_json(server: Server, sent: bytes, says: str) -> None:
    _, answer = await server.ask(sent)
    assert says in refusal(answer, 400)


@pytest.mark.parametrize("sent", [b"", b"\r\n", GET + b"\r\n"])
async def test_a_connection_without_a_request_is_closed_without_a_response(server: Server, sent: bytes) -> None:
    _, answer = await server.ask(sent)
    assert b"408" not in answer
    assert answer.count(b"HTTP/1.1 ") == sent.count(GET)


async def test_a_head_that_arrives_slowly_is_refused_after_the_time_limit(server: Server) -> None:
    caller = await server.call()
    await caller.send(b"GET /a HTTP/1.1\r\n")

    async def trickle() -> None:
        while True:
            await caller.send(b"x: y\r\n")
            await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    assert "head" in refusal(await caller.rest(), 408)
    trickling.cancel()


async def test_a_request_in_progress_is_answered_before_the_connection_is_closed(server: Server) -> None:
    for following in (b"GET", b"nonsense\r\n\r\n", POST + b"12"):
        server.gate.clear()
        caller = await server.call()
        await caller.send(b"GET /slow HTTP/1.1\r\n\r\n")
        await caller.send(following)
        await eventually(lambda: any(one._pending_response for one in server.connections), what="it is refused")
        server.gate.set()
        answer = await caller.rest()
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        refusal(answer, 400 if following.startswith(b"nonsense") else 408)
