"""The load generator: a separate process that implements only the HTTP it needs, so that it is not the bottleneck.

It reads one JSON request per line from stdin and answers each with one JSON line: seconds of wall time and of its own
CPU time, and latencies in milliseconds. `Load` is the client for the process that measures.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import uvloop

#: The interval between the starts of two GETs of `follow`.
POLL_SECONDS = 0.002
#: The timeout of a response, and of a job that `follow` polls.
RESPONSE_SECONDS = 30.0

BODY = b'{"type": "mock_process"}'


class Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request in flight."""

    def __init__(self) -> None:
        self.answered: Callable[[int, bytes], None] = lambda status, body: None
        self.lost: Callable[[], None] = lambda: None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _: Exception | None) -> None:
        self.lost()

    def send(self, request: bytes) -> None:
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        head_end = buffer.find(b"\r\n\r\n")
        if head_end < 0:
            self._buffer = buffer
            return
        at = buffer.lower().find(b"content-length:", 0, head_end)
        length = int(buffer[at + 15 : buffer.index(b"\r\n", at)]) if at >= 0 else 0
        end = head_end + 4 + length
        if len(buffer) < end:
            self._buffer = buffer
            return
        self._buffer = b""
        self.answered(int(buffer[9:12]), buffer[head_end + 4 : end])

    async def request(self, request: bytes) -> tuple[int, bytes]:
        """Send a request, and return the status and the body of the response.

        Raises ConnectionError when the connection closes, TimeoutError after 30 s.
        """
        loop = asyncio.get_running_loop()
        response: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self.answered = lambda status, body: response.set_result((status, body))
        self.lost = lambda: _fail(response, ConnectionError("the connection was closed"))
        self.send(request)
        return await asyncio.wait_for(response, RESPONSE_SECONDS)

    def close(self) -> None:
        """Close the connection without a call of `lost`."""
        self.lost = lambda: None
        self.transport.close()


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


async def connect(port: int) -> Connection:
    """Open a connection to this port of the loopback interface."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


def post_request(body: bytes = BODY, path: str = "/jobs") -> bytes:
    """Return the bytes of a POST request with this JSON body."""
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def get_request(job_id: str) -> bytes:
    """Return the bytes of the request GET /jobs/{job_id}."""
    return f"GET /jobs/{job_id} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


async def hammer(port: int, requests: list[bytes], connections: int, expected: int) -> dict[str, Any]:
    """Send all requests over this many connections, each as soon as the one before has been answered.

    Returns `seconds` of wall time, `cpu` seconds of this process, `ms` (the latencies) and `bodies` (the responses).
    Raises RuntimeError when a response does not have the expected status, ConnectionError when a connection closes.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    latencies: list[float] = []
    bodies: list[bytes] = []
    pending = iter(requests)
    clock = time.perf_counter

    def serve(connection: Connection) -> None:
        sent_at = clock()

        def send_next() -> None:
            nonlocal sent_at
            request = next(pending, None)
            if request is not None:
                sent_at = clock()
                connection.send(request)

        def answered(status: int, body: bytes) -> None:
            latencies.append(clock() - sent_at)
            bodies.append(body)
            if status != expected:
                _fail(done, RuntimeError(f"the status was {status}, not {expected}: {body[:200]!r}"))
            if len(latencies) == len(requests) and not done.done():
                done.set_result(None)
            send_next()

        connection.answered = answered
        connection.lost = lambda: _fail(done, ConnectionError("a connection was closed"))
        send_next()

    opened = [await connect(port) for _ in range(min(connections, len(requests)))]
    cpu, began = time.process_time(), clock()
    for connection in opened:
        serve(connection)
    await asyncio.wait_for(done, 600)
    seconds = clock() - began
    cpu = time.process_time() - cpu
    for connection in opened:
        connection.close()
    return {"seconds": seconds, "cpu": cpu, "ms": [round(1000 * each, 3) for each in latencies], "bodies": bodies}


async def follow(connection: Connection) -> float:
    """POST a job, then GET it every 2 ms until it has completed.

    Returns the milliseconds from the start of the POST to the response that shows it completed. Raises RuntimeError
    when a request or the job fails, or the job has not completed after 30 s.
    """
    clock = time.perf_counter
    began = clock()
    status, body = await connection.request(post_request())
    if status != 202:
        raise RuntimeError(f"POST returned {status}: {body[:200]!r}")
    request = get_request(json.loads(body)["job_id"])
    while True:
        requested_at = clock()
        status, body = await connection.request(request)
        now = clock()
        if status != 200 or b'"failed"' in body:
            raise RuntimeError(f"GET returned {status}: {body[:200]!r}")
        if b'"completed"' in body:
            return 1000 * (now - began)
        if now - began > RESPONSE_SECONDS:
            raise RuntimeError(f"the job was not completed after {RESPONSE_SECONDS:g} s: {body[:200]!r}")
        await asyncio.sleep(max(0.0, requested_at + POLL_SECONDS - now))


async def _post(port: int, count: int, connections: int, body: str | None = None) -> dict[str, Any]:
    request = post_request(body.encode()) if body else post_request()
    sample = await hammer(port, [request] * count, connections, 202)
    sample["ids"] = [json.loads(body)["job_id"] for body in sample.pop("bodies")]
    return sample


async def _batch(port: int, count: int, size: int, connections: int) -> dict[str, Any]:
    request = post_request(b'{"jobs": [%s]}' % b", ".join([BODY] * size), "/jobs/batch")
    sample = await hammer(port, [request] * count, connections, 202)
    sample["ids"] = [job_id for body in sample.pop("bodies") for job_id in json.loads(body)["job_ids"]]
    return sample


async def _get(port: int, ids: list[str], count: int, connections: int, status: str | None) -> dict[str, Any]:
    requests = [get_request(job_id) for job_id in ids]
    sample = await hammer(port, (requests * (count // len(ids) + 1))[:count], connections, 200)
    if status is not None:
        wrong = [body for body in sample["bodies"] if json.loads(body)["status"] != status]
        if wrong:
            raise RuntimeError(f"{len(wrong)} of {count} jobs are not {status}: {wrong[0]!r}")
    del sample["bodies"]
    return sample


async def _idle(port: int, rounds: int, together: int, silence: float) -> dict[str, Any]:
    """In each of `rounds` rounds, wait `silence` seconds, then follow `together` jobs at the same time."""
    ms: list[float] = []
    for _ in range(rounds):
        await asyncio.sleep(silence)
        # New connections, because a server closes idle ones. The time to connect is not measured.
        connections = [await connect(port) for _ in range(together)]
        ms += await asyncio.gather(*(follow(connection) for connection in connections))
        for connection in connections:
            connection.close()
    return {"ms": [round(each, 3) for each in ms]}


async def _serve() -> None:
    actions: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
        "post": _post,
        "batch": _batch,
        "get": _get,
        "idle": _idle,
    }
    reader = asyncio.StreamReader(limit=2**30)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        request = json.loads(line)
        try:
            response = await actions[request.pop("do")](**request)
        except Exception as error:
            response = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(response), flush=True)


class Load:
    """The client of a load generator for one HTTP port; a context manager that starts and stops its process.

    `post`, `batch` and `get` return `seconds` of wall time, `cpu` seconds of the load generator and `ms`, the latency
    of each request. Every method raises RuntimeError when a response is not the expected one, or a connection fails.
    """

    def __init__(self, port: int, connections: int = 16) -> None:
        self._port = port
        self._connections = connections

    def __enter__(self) -> "Load":
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)

    def post(self, count: int, body: str | None = None) -> dict[str, Any]:
        """POST this many jobs. The result also has `ids`, those of the jobs."""
        return self._call(do="post", count=count, connections=self._connections, body=body)

    def batch(self, count: int, size: int) -> dict[str, Any]:
        """POST this many batches of `size` jobs. The result also has `ids`, those of all jobs."""
        return self._call(do="batch", count=count, size=size, connections=self._connections)

    def get(self, ids: list[str], count: int, status: str | None = None) -> dict[str, Any]:
        """Send `count` GETs for these jobs, in turn. Each job must have this status, unless it is None."""
        return self._call(do="get", ids=ids, count=count, connections=self._connections, status=status)

    def idle(self, rounds: int, together: int, silence: float) -> dict[str, Any]:
        """In each round, wait `silence` seconds, then run `together` jobs at the same time.

        The result has `ms`: for each job the milliseconds from the POST to the GET that shows it completed.
        """
        return self._call(do="idle", rounds=rounds, together=together, silence=silence)

    def _call(self, **request: Any) -> dict[str, Any]:
        request["port"] = self._port
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        response: dict[str, Any] = json.loads(self._process.stdout.readline() or b'{"error": "its process ended"}')
        if "error" in response:
            raise RuntimeError(f"the load generator failed: {response['error']}")
        return response


if __name__ == "__main__":
    uvloop.run(_serve())
