"""Measures a single job's latency while many jobs wait at its first stage that no worker knows.

    python -m bench.scenarios.unknown_work [--jobs N] [--json FILE]

The latency is that of a job of three stages that do nothing, in an idle system: first without the unknown jobs, then
while they are delivered and refused for the first time, and from then on in windows of 30 s, while they return.
"""

import argparse
import asyncio
import time
from typing import Final

from nats.aio.client import Client
from uuid_utils import uuid7

from bench.support import queue_state, report
from bench.support.load import Load
from bench.support.payloads import templates
from bench.support.processes import System, folder

ROUNDS: Final = 60
SILENCE_SECONDS: Final = 0.5
WINDOWS: Final = 4
FIRST_STAGE: Final = "extracting"


def parse_options() -> argparse.Namespace:
    """Parse the command line: the number of unknown jobs, and the output file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000, help="unknown jobs")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    return parser.parse_args()


def fill(nats_url: str, jobs: int) -> None:
    """Publish this many jobs of an unknown type at the first stage, as a gateway does."""
    first = templates()[0]

    async def publish(client: Client) -> None:
        js = client.jetstream(timeout=60)
        for start in range(0, jobs, 500):
            ids = [str(uuid7()) for _ in range(min(500, jobs - start))]
            subject = f"heimdex.jobs.{first.token}."
            payloads = {each: first.payload(each).replace(b'"mock_process"', b'"unknown"') for each in ids}
            await asyncio.gather(
                *(js.publish(subject + each, payloads[each], headers=first.headers(each, 0)) for each in ids)
            )

    queue_state.with_client(nats_url, publish)


def latency(load: Load) -> dict[str, float]:
    """Return p50 and p99 of a single job in milliseconds."""
    return report.spread(load.idle(ROUNDS, 1, SILENCE_SECONDS)["ms"])


def main() -> None:
    """Run the benchmark and print the table."""
    options = parse_options()
    machine = report.machine()
    environ = {"HEIMDEX_MAX_PENDING_JOBS": str(10 * options.jobs)}
    figures: dict[str, dict[str, float]] = {}
    with folder("unknown") as directory, System(directory, "default", 1, environ) as system, Load(system.port) as load:
        figures["without"] = latency(load)
        fill(system.nats.url, options.jobs)
        figures["while they are refused first"] = latency(load)
        while queue_state.undelivered(system.nats.url, FIRST_STAGE) > 0:
            time.sleep(0.5)
        for number in range(WINDOWS):
            figures[f"{30 * number} to {30 * number + 30} s later"] = latency(load)
    rows = [["unknown jobs", "p50", "p99", "ratio of p50"]]
    for name, each in figures.items():
        ratio = each["p50"] / figures["without"]["p50"]
        rows.append([name, f"{each['p50']:.1f} ms", f"{each['p99']:.1f} ms", f"{ratio:.2f}"])
    print(report.table(f"Latency of a job beside {options.jobs:,} jobs of an unknown type\n{machine}", rows))
    report.save(options.json, {"machine": machine, **figures})


if __name__ == "__main__":
    main()
