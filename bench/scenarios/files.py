"""Compares the store of files with plain obstore, for the same bytes: in a folder and in an S3 server on this machine.

    python -m bench.scenarios.files [--mib N] [--runs N] [--root FOLDER] [--json FILE]

obstore neither syncs nor hashes. So a folder has a third column, obstore and then one sync of the file, which is what
the disk allows. The bytes come in chunks of 64 KiB from an async iterator, as those of a request do, and are read in
chunks of 1 MiB. The S3 server is that of moto, a Python program, which is what limits both in S3.
"""

import argparse
import asyncio
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import obstore
from obstore.store import LocalStore, ObjectStore, S3Store

from bench.support import report
from bench.support.processes import folder
from heimdex_files.backends.s3 import Bucket
from heimdex_files.store import FileStore
from tests.support.s3 import ACCESS, S3Server

CHUNK = os.urandom(64 * 1024)
MIB = 2**20


async def body(mib: int) -> AsyncIterator[bytes]:
    """Yield so many MiB, as a request's body comes."""
    for _ in range(mib * 16):
        yield CHUNK


async def timed(work: Callable[[], Awaitable[None]], mib: int) -> float:
    """Return the MiB per second of the work."""
    began = time.perf_counter()
    await work()
    return mib / (time.perf_counter() - began)


async def ours(store: FileStore, mib: int) -> report.Figures:
    """Store and read a file. Returns MiB per second."""
    key = f"bench/{uuid.uuid4()}"

    async def create() -> None:
        await store.create(key, body(mib), content_type="video/mp4")

    async def read() -> None:
        async with await store.open(key) as download:
            async for _ in download:
                pass

    figures = {"create": await timed(create, mib), "open": await timed(read, mib)}
    await store.delete([key])
    return figures


async def plain(store: ObjectStore, mib: int, synced: Path | None = None) -> report.Figures:
    """Store and read an object with obstore alone. `synced`: sync the file below this folder afterwards."""
    key = f"bench-{uuid.uuid4()}"

    async def create() -> None:
        await obstore.put_async(store, key, body(mib))
        if synced:
            descriptor = os.open(synced / key, os.O_RDONLY)
            await asyncio.to_thread(os.fsync, descriptor)
            os.close(descriptor)

    async def read() -> None:
        async for _ in (await obstore.get_async(store, key)).stream(min_chunk_size=MIB):
            pass

    figures = {"create": await timed(create, mib), "open": await timed(read, mib)}
    await obstore.delete_async(store, key)
    return figures


async def measure(options: argparse.Namespace, root: Path, server: S3Server) -> report.Figures:
    """Run each measurement `runs` times, in turn, and return the medians in MiB per second."""
    names = ("ours", "obstore", "obstore and a sync")
    runs: dict[str, list[report.Figures]] = {}
    local = LocalStore(root, mkdir=True)
    async with (
        FileStore.from_url(f"file://{root}") as on_disk,
        FileStore.from_url(server.url("ours")) as in_s3,
    ):
        backend = in_s3.blocking._backend
        assert isinstance(backend, Bucket)
        bucket: S3Store = backend._store
        for run in range(options.runs + 1):
            each = {
                f"file {names[0]}": await ours(on_disk, options.mib),
                f"file {names[1]}": await plain(local, options.mib),
                f"file {names[2]}": await plain(local, options.mib, synced=root),
                f"s3 {names[0]}": await ours(in_s3, options.mib),
                f"s3 {names[1]}": await plain(bucket, options.mib),
            }
            if run:  # the first warms up
                for name, figures in each.items():
                    runs.setdefault(name, []).append(figures)
    return {name: report.median(figures) for name, figures in runs.items()}


def show(figures: report.Figures, options: argparse.Namespace, machine: str) -> str:
    """Return the table of the figures as text."""
    rows = [["", "create", "ours / it", "open", "ours / it"]]
    for name, each in figures.items():
        base = figures[f"{name.partition(' ')[0]} ours"]
        rows.append(
            [
                name,
                f"{each['create']:,.0f} MiB/s",
                f"{base['create'] / each['create']:.2f}",
                f"{each['open']:,.0f} MiB/s",
                f"{base['open'] / each['open']:.2f}",
            ]
        )
    return report.table(f"A file of {options.mib} MiB, medians of {options.runs} runs\n{machine}", rows)


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512, help="the size of the file")
    parser.add_argument("--runs", type=int, default=3, help="runs over which the medians are taken")
    parser.add_argument("--root", type=Path, help="a folder on the disk to measure (default: below .heimdex/bench/)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    os.environ.update(ACCESS)
    machine = report.machine()
    server = S3Server()
    try:
        with folder("files") as directory:
            root: Path = options.root or directory / "files"
            root.mkdir(parents=True, exist_ok=True)
            figures = asyncio.run(measure(options, root, server))
            if not options.root:
                shutil.rmtree(root)
    finally:
        server.kill()
    print(show(figures, options, machine))
    report.save(options.json, {"machine": machine, **figures})


if __name__ == "__main__":
    main()
