"""What a POST and a GET cost the gateway, and how often that of a bare Litestar handler (baselines/litestar.py) it is.

    python -m bench.scenarios.gateway [--requests N] [--runs N] [--json FILE]

The workers and the status store rest while this is measured, so that nothing else competes for the machine's caches;
nats-server and Postgres do their part.
"""

import argparse
import statistics
import sys
import time

import psutil  # type: ignore[import-untyped]

from bench.baselines.litestar import __file__ as BARE
from bench.support import queue_state, report
from bench.support.load import Load
from bench.support.processes import STAGES, System, folder, wait_for_http
from heimdex_cli.embedded.ports import free_port


def options() -> argparse.Namespace:
    """How much to ask, and how often."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000, help="of each kind a run")
    parser.add_argument("--runs", type=int, default=5, help="runs whose medians are shown")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def _cost(pid: int, load: Load, ids: list[str] | None, count: int) -> float:
    """CPU milliseconds of this process a request."""
    process = psutil.Process(pid)
    before = process.cpu_times()
    if ids is None:
        load.post(count)
    else:
        load.get(ids, count, "completed")
    after = process.cpu_times()
    return float(1000 * (after.user + after.system - before.user - before.system) / count)


def measure(wanted: argparse.Namespace) -> report.Figures:
    """CPU milliseconds of POST and GET, ours and bare, and the ratios: medians of the runs."""
    with folder("gateway") as directory, System(directory) as system:
        port = free_port()
        system.group.start("bare", [sys.executable, BARE, str(port), system.postgres.url])
        wait_for_http(f"http://127.0.0.1:{port}/readyz", system.group)
        with Load(system.port) as ours, Load(port) as bare:
            ids = ours.post(1000)["ids"]
            queue_state.wait_until_empty(system.nats.url)
            system.group.stop(*STAGES)
            pids = system.group.pid("gateway"), system.group.pid("bare")
            found: dict[str, list[float]] = {}

            def compare(name: str, asked: list[str] | None) -> None:
                one = _cost(pids[0], ours, asked, wanted.requests)
                other = _cost(pids[1], bare, asked, wanted.requests)
                for key, value in ((name, one), (f"{name}_bare", other), (f"{name}_ratio", one / other)):
                    found.setdefault(key, []).append(value)

            bare.post(500)
            bare.get(ids, 500, "completed")
            ours.get(ids, 500, "completed")
            for _ in range(wanted.runs):
                compare("get", ids)
            system.group.stop("status-store")
            for _ in range(wanted.runs):
                compare("post", None)
                time.sleep(0.2)
        return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Print one table."""
    wanted = options()
    machine = report.machine()
    try:
        found = measure(wanted)
    except RuntimeError as error:
        print(f"Wrong: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    rows = [["CPU ms a request", "gateway", "bare Litestar", "ratio", "target"]]
    for name, label, target in (("post", "POST /jobs", "2.0"), ("get", "GET /jobs/{id}", "1.5")):
        ours, bare, ratio = (found[f"{name}{suffix}"] for suffix in ("", "_bare", "_ratio"))
        rows.append([label, f"{ours:.3f}", f"{bare:.3f}", f"{ratio:.2f}", target])
    print(report.table(f"{wanted.requests:,} requests a run, medians of {wanted.runs}\n{machine}", rows))
    report.save(wanted.json, found)


if __name__ == "__main__":
    main()
