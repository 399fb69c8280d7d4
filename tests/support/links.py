"""Proxies for faults of the network.

`Link` is a link to a server that can be cut, reset right after the server's first line, or made to drop all data. It
can also send lines in the name of the server that a real one sends only in rare cases. `RouteLink` is a link between
the nodes of a NATS cluster that can be made slow.
"""

import asyncio
import re
import socket
import struct
from typing import Any


class Link:
    """Forwards the connections to its own port.

    `resets`: this many of the next connections are reset after the server's first line. `greetings`: lines, without
    their ends, that are sent to the next connections after the server's first line, one each; after an `-ERR` the
    connection is closed.

    to: the port of the server on this machine, or the path of its unix socket.
    """

    def __init__(self, to: int | str) -> None:
        self.url = ""
        self.resets = 0
        self.greetings: list[bytes] = []
        self.accepted = 0
        self.port = 0
        self._to = to
        self._swallows = False
        self._writers: list[asyncio.StreamWriter] = []
        self._clients: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> "Link":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self._clients.clear()

    def say(self, line: bytes, *, close: bool = False) -> None:
        """Send this line (without its end) to each client, as the server would. Only for an otherwise silent server."""
        for writer in self._clients:
            if not writer.is_closing():
                writer.write(line + b"\r\n")
                if close:
                    writer.close()

    def swallow(self) -> None:
        """From now on, drop all data in both directions without closing a connection."""
        self._swallows = True

    def swallow_connections(self) -> int:
        """Drop all data of the existing connections without closing them. New connections work.

        Returns the number of existing connections.
        """
        for task in self._tasks:
            task.cancel()
        return len(self._tasks) // 2

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if isinstance(self._to, str):
            onward, back = await asyncio.open_unix_connection(self._to)
        else:
            onward, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += (writer, back)
        if self.resets:
            self.resets -= 1
            writer.write(await onward.readline())
            reset(writer)
            self.cut()
            return
        self._clients.append(writer)
        if self.greetings:
            greeting = self.greetings.pop(0)
            writer.write(await onward.readline() + greeting + b"\r\n")
            if greeting.startswith(b"-ERR"):
                back.transport.abort()
                await writer.drain()
                writer.write_eof()
                await reader.read()  # until the client closes it too
                writer.transport.abort()
                return
        for source, target in ((reader, back), (onward, writer)):
            task = asyncio.create_task(self._forward(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while (data := await source.read(65536)) and not self._swallows:
                target.write(data)
                await target.drain()
        except OSError:
            return
        if not self._swallows:
            target.transport.abort()


class RouteLink:
    """Forwards the routes from the other nodes of a NATS cluster to one node, in order and with a delay.

    name: the name of the node. listen: the port of this link. port: the node's own port for routes. delays: seconds by
    the name of a node. A route has the longer delay of its two ends.
    """

    _NAME = re.compile(rb'"server_name":"([^"]+)"')

    def __init__(self, name: str, listen: int, port: int, delays: dict[str, float]) -> None:
        self._name = name
        self._listen = listen
        self._port = port
        self._delays = delays
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Start to listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._listen)

    def close(self) -> None:
        """Stop listening, and cut all routes."""
        self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward, back = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        ends = [self._name]
        for source, target, learns in ((reader, back, True), (onward, writer, False)):
            late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
            for work in (self._read(source, late, ends, learns), self._write(target, late)):
                task = asyncio.create_task(work)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _read(
        self, source: asyncio.StreamReader, late: "asyncio.Queue[tuple[float, bytes]]", ends: list[str], learns: bool
    ) -> None:
        """Read one direction of a route into the queue `late`.

        learns: the data are from the node that opened the route, and its first data have its name, which is added to
        `ends`.
        """
        first_data = b""
        try:
            while data := await source.read(65536):
                if learns and len(ends) == 1:
                    first_data += data
                    ends += [name.decode() for name in self._NAME.findall(first_data)[:1]]
                delay = max(self._delays.get(name, 0.0) for name in ends)
                late.put_nowait((asyncio.get_running_loop().time() + delay, data))
        except OSError:
            pass
        finally:
            late.put_nowait((0, b""))

    async def _write(self, target: asyncio.StreamWriter, late: "asyncio.Queue[tuple[float, bytes]]") -> None:
        try:
            while (entry := await late.get())[1]:
                await asyncio.sleep(max(0.0, entry[0] - asyncio.get_running_loop().time()))
                target.write(entry[1])
                await target.drain()
        except OSError:
            pass
        finally:
            target.transport.abort()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close the connection with a reset: a close with a linger time of 0 sends one."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
