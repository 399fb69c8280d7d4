"""The memory that a file takes on its way does not depend on its size."""

import asyncio
import json
import os
import subprocess
import sys

import pytest

_PROGRAM = """
import asyncio, hashlib, json, os, resource, sys
from heimdex_files.store import FileStore

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

CHUNK = os.urandom(64 * 1024)

async def body(mebibytes, digest):
    for _ in range(mebibytes * 16):
        digest.update(CHUNK)
        yield CHUNK

async def transfer(store, key, mebibytes):
    digest, read = hashlib.sha256(), hashlib.sha256()
    stored = await store.create(key, body(mebibytes, digest), content_type="video/mp4")
    async with await store.open(key) as download:
        async for chunk in download:
            read.update(chunk)
    assert stored.bytes == mebibytes * 2**20
    assert stored.sha256 == digest.hexdigest() == read.hexdigest()

async def main():
    async with FileStore.from_url(sys.argv[1]) as store:
        await transfer(store, "a/small", 1)
        before = peak()
        await transfer(store, "a/large", int(sys.argv[2]))
        print(json.dumps([before, peak()]))

asyncio.run(main())
"""


async def grown(url: str, mebibytes: int) -> float:
    """Store and read a file in a process of its own. Returns by how many MiB its peak memory grew."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _PROGRAM, url, str(mebibytes)],
        stdout=subprocess.PIPE,
        check=True,
        timeout=550,
        env=os.environ,
    )
    before, after = json.loads(done.stdout)
    return float(after - before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.full
@pytest.mark.timeout(600)
async def test_half_a_gibibyte_in_and_out_takes_less_than_64_mebibytes(url: str) -> None:
    assert await grown(url, 512) < 64
