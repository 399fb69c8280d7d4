"""What a process that is forked from a service has of it, in processes of their own."""

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from tests.support.services import clean_environment

SERVICE = """
import asyncio, json, os, signal, sys, threading, time
import uvloop
from heimdex_contracts.runtime import forks, process
from heimdex_contracts.runtime.run_to_end import run_to_end

def look():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    caught = int(fields["SigCgt"], 16)
    names = [number.name for number in signal.Signals if number < 32 and caught >> (number - 1) & 1]
    return {"caught": names, "blocked": int(fields["SigBlk"], 16), "wakeup": signal.set_wakeup_fd(-1)}

def fork():
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, json.dumps(look()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return json.loads(os.read(reading, 65536))

async def main():
    loop = asyncio.get_running_loop()
    for number in process.STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    forks.protect(loop, process.STOP_SIGNALS, "test")
    other = await asyncio.create_subprocess_exec("sleep", "60")  # libuv handles SIGCHLD while it runs
    found = fork() if sys.argv[1] == "loop" else await asyncio.to_thread(fork)
    blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
    print(json.dumps({"child": found, "parent": look() | {"blocked": blocked}}))
    other.kill()

run_to_end(uvloop.new_event_loop(), main(), print)
"""


def run(where: str) -> dict[str, Any]:
    finished = subprocess.run(
        [sys.executable, "-c", SERVICE, where], env=clean_environment(), capture_output=True, timeout=60, check=True
    )
    return msgspec.json.decode(finished.stdout, type=dict[str, Any])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("where", ["loop", "thread"])
def test_a_forked_child_handles_no_signal_of_its_service_and_blocks_none(where: str) -> None:
    processes = run(where)
    assert processes["child"] == {"caught": ["SIGINT"], "blocked": 0, "wakeup": -1}
    assert {"SIGTERM", "SIGHUP", "SIGINT", "SIGCHLD"} <= set(processes["parent"]["caught"])
    assert processes["parent"]["blocked"] == []
    assert processes["parent"]["wakeup"] > 0
