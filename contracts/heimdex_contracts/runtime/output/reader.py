"""The process that reads the captured output of another one. It is forked from it, and ends when nobody can write.

It is a process, and not a thread, for two reasons. A library that writes more than a pipe holds while it has the
interpreter lock would wait for a thread that waits for this lock. And the last words of a process that crashes, for
example those of the C library, would be lost with it.
"""

import contextlib
import gc
import os
import select
import signal
import time
from collections.abc import Mapping
from typing import Final

from heimdex_contracts.runtime.output.lines import Entries, Lines, output_entry
from heimdex_contracts.runtime.output.running import SharedMemory

_CHUNK: Final = 65536
#: A line was written at most this long before it is read, if the pipe was empty.
_LATENCY_SECONDS: Final = 0.2
#: The process that it reads from may receive these with its process group. It must outlive that process.
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def fork(
    pipes: Mapping[str, int], alive: int, entries: Entries, keep: set[int], running: SharedMemory, service: str
) -> None:
    """Start the reader. pipes: the reading ends by stream. alive: a descriptor that closes with the reader.

    keep: the further descriptors that `entries` needs. The reader is not a child of this process, so that a stage that
    waits for all its children does not wait for it. Raises OSError.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        if os.fork() == 0:
            _close_others({*pipes.values(), alive, *keep})
            gc.disable()  # it must not finalize objects of the other process
            for number in _IGNORED:
                signal.signal(number, signal.SIG_IGN)
            _read(pipes, entries, running, service)
    finally:
        os._exit(0)


def _close_others(keep: set[int]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    for name in os.listdir("/dev/fd"):
        if (fd := int(name)) > 2 and fd not in keep:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(fd)


def _read(pipes: Mapping[str, int], entries: Entries, running: SharedMemory, service: str) -> None:
    streams = {fd: stream for stream, fd in pipes.items()}
    sources = {fd: Lines() for fd in streams}
    poll = select.poll()
    for fd in sources:
        poll.register(fd, select.POLLIN)
    written_since = time.monotonic()
    while sources:
        if not (ready := poll.poll(0)):
            ready = poll.poll()
            written_since = time.monotonic() - _LATENCY_SECONDS
        for fd, _ in ready:
            data = os.read(fd, _CHUNK)
            attempt = running.read().only(written_since)
            for line in sources[fd].feed(data, final=not data):
                entries.write(output_entry(service, streams[fd], line, attempt))
            if not data:
                poll.unregister(fd)
                del sources[fd]
