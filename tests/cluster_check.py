"""`make cluster-check`: many jobs through three NATS nodes where nothing fails, on old and new servers, idle and busy.

Each round is a new cluster (each has its leaders on other nodes) and a new system on an empty database. Prints one
table; exit code 1 where a job was superseded, restored, dropped, begun twice, or unfinished when the stream was empty.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import uvloop

from tests.support import servers
from tests.support.cluster import Cluster
from tests.support.nats_versions import nats_server
from tests.support.rush import Rush, rush
from tests.support.services import System

#: A round that takes longer is stuck.
ROUND_SECONDS = 600


def options() -> argparse.Namespace:
    """What to go through, and how often."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="of each server version, busy and idle (default 10)")
    parser.add_argument("--jobs", type=int, default=1400, help="of each round (default 1400)")
    parser.add_argument(
        "--versions", nargs="+", default=["2.12.8", "2.15.1"], help="of nats-server (default 2.12.8 2.15.1)"
    )
    parser.add_argument("--sync", default="always", help="nats-server's sync_interval (default always)")
    parser.add_argument(
        "--spinner", choices=("on", "off", "both"), default="both", help="keep every core busy beside it (default both)"
    )
    return parser.parse_args()


@contextmanager
def folder() -> Iterator[Path]:
    """One that is removed in the end."""
    path = servers.temporary_folder()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


async def go(version: str, busy: bool, jobs: int, sync: str, database_url: str, path: Path) -> Rush:
    """One round. Raises AssertionError where it does not come to its end."""
    cluster = Cluster(path / "cluster", sync_interval=sync, version=version)
    system = System(cluster.url, database_url, path)
    try:
        await cluster.start()
        return await rush(system, cluster, database_url, jobs, busy=busy, timeout=ROUND_SECONDS)
    finally:
        system.end()
        cluster.end()


def together(rounds: list[Rush]) -> Rush:
    """Their sums."""
    return Rush(**{field.name: sum(getattr(one, field.name) for one in rounds) for field in fields(Rush)})


COLUMNS = (
    "nats-server",
    "spinner",
    "rounds",
    "jobs",
    "superseded",
    "restored",
    "dropped",
    "unfinished",
    "twice",
    "jobs/s",
)


def table(results: dict[tuple[str, bool], list[Rush]]) -> str:
    """One row for each version, busy and idle."""
    rows = [COLUMNS]
    for (version, busy), rounds in results.items():
        sums = together(rounds)
        counts = (sums.jobs, sums.superseded, sums.restored, sums.dropped, sums.unfinished, sums.twice)
        name = ("yes" if busy else "no", str(len(rounds)))
        rows.append((version, *name, *map(str, counts), f"{sums.per_second:.0f}"))
    widths = [max(len(row[index]) for row in rows) for index in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> None:
    """Exit code 1 for anything that must not have happened."""
    arguments = options()
    spinners = {"on": [True], "off": [False], "both": [True, False]}[arguments.spinner]
    results: dict[tuple[str, bool], list[Rush]] = {}
    failed = 0
    with folder() as path:
        postgres = servers.start_postgres(path)
        try:
            for version in arguments.versions:
                nats_server(version)  # downloaded before anything is measured
                for busy in spinners:
                    for number in range(1, arguments.rounds + 1):
                        place = Path(tempfile.mkdtemp(dir=path))
                        database_url = servers.new_database(postgres)
                        try:
                            result = uvloop.run(go(version, busy, arguments.jobs, arguments.sync, database_url, place))
                        except AssertionError as error:
                            failed += 1
                            print(f"round {number} of {version} did not end: {error}", file=sys.stderr, flush=True)
                            continue
                        results.setdefault((version, busy), []).append(result)
                        state = f"round {number} of {version}, {'busy' if busy else 'idle'}: {result}"
                        print(state, file=sys.stderr, flush=True)
                        shutil.rmtree(place, ignore_errors=True)
        finally:
            servers.remove(postgres)
    print(table(results))
    if failed or any(one.wrong for rounds in results.values() for one in rounds):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
