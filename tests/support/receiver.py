"""Receivers of callbacks on the loopback interface: `Receiver` records the calls and returns the responses of a test,
`Stranger` sends arbitrary bytes.
"""

import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import msgspec
from standardwebhooks import Webhook

#: The secret with which the tests sign callbacks.
SECRET = "whsec_dGhlIHNlY3JldCBvZiB0aGUgdGVzdHMgYWxvbmU="


@dataclass(frozen=True)
class Call:
    """One POST that was received. The names of `headers` are in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def job(self) -> dict[str, Any]:
        """The job in the body. Raises WebhookVerificationError when the signature is wrong."""
        Webhook(SECRET).verify(self.body, self.headers)
        job: dict[str, Any] = msgspec.json.decode(self.body)
        return job

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """An HTTP server on 127.0.0.1 that runs while its context is open, on the same port each time.

    answers: the responses, one per call; the last one is for all further calls. A response is a status, or (status,
    headers), or a function of the call that returns one of these; it may block.
    """

    answers: list[Any] = field(default_factory=lambda: [204])
    calls: list[Call] = field(default_factory=list)
    port: int = 0
    _server: ThreadingHTTPServer | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, more = receiver._take(Call(self.path, headers, body))
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # the client closed the connection

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks?for=tests"

    def of(self, job_id: str) -> list[Call]:
        """Return the calls about this job, in order."""
        with self._lock:
            return [call for call in self.calls if call.id.startswith(job_id)]

    def _take(self, call: Call) -> tuple[int, Mapping[str, str]]:
        with self._lock:
            answer = self.answers[min(len(self.calls), len(self.answers) - 1)]
            self.calls.append(call)
        if isinstance(answer, Callable):  # type: ignore[arg-type]
            answer = answer(call)
        return answer if isinstance(answer, tuple) else (answer, {})


class Stranger:
    """A server on 127.0.0.1 that runs while its context is open, and writes arbitrary bytes to its connections.

    say: called with each connection after its request has been read, in a thread per connection. An OSError that it
    raises when the client closes the connection is ignored. tls: the context for TLS connections; None for plain ones.
    deaf: `say` is called without reading the request.
    """

    def __init__(
        self, say: Callable[[socket.socket], object], tls: ssl.SSLContext | None = None, deaf: bool = False
    ) -> None:
        self._say = say
        self._tls = tls
        self._deaf = deaf
        self._lock = threading.Lock()
        #: The number of connections so far, and of those that are open now.
        self.calls = self.open = 0
        #: The bodies of the requests.
        self.bodies: list[bytes] = []

    def __enter__(self) -> Self:
        stranger = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with stranger._lock:
                    stranger.calls += 1
                    stranger.open += 1
                try:
                    stranger._serve(self.request)
                except OSError:
                    pass  # the client closed the connection
                finally:
                    with stranger._lock:
                        stranger.open -= 1

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 512

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}/"

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A client that neither reads nor closes the connection must not block this thread for ever.
        connection.settimeout(60)
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        if not self._deaf:
            with connection.makefile("rb") as lines:
                length = 0
                while (line := lines.readline().strip().lower()) != b"":
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                self.bodies.append(lines.read(length))
        self._say(connection)
        # Unread data would turn the close into a reset.
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
