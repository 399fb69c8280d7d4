"""Measures the gateway's CPU time per POST and GET, as a multiple of a bare Litestar handler's (baselines/litestar.py).

    python -m bench.scenarios.gateway [--requests N] [--runs N] [--json FILE]

The workers are stopped for both measurements, and the status store for that of POST, so that they do not compete for
the machine's caches. nats-server and Postgres run.
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


def parse_options() -> argparse.Namespace:
    """Parse the command line: the number of requests and of runs, and the output file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000, help="POSTs, and GETs, per run")
    parser.add_argument("--runs", type=int, default=5, help="runs over which the medians are taken")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    return parser.parse_args()


def _cost(pid: int, load: Load, ids: list[str] | None, count: int) -> float:
    """Return the CPU milliseconds of this process per request: POST /jobs when `ids` is None, else GET /jobs/{id}."""
    process = psutil.Process(pid)
    before = process.cpu_times()
    if ids is None:
        load.post(count)
    else:
        load.get(ids, count, "completed")
    after = process.cpu_times()
    return float(1000 * (after.user + after.system - before.user - before.system) / count)


def measure(options: argparse.Namespace) -> report.Figures:
    """Return the CPU milliseconds per POST and GET of the gateway and of the bare handlers, and the ratios.

    The figures are medians of the runs. Raises RuntimeError when a response is wrong or a process dies.
    """
    with folder("gateway") as directory, System(directory) as system:
        port = free_port()
        system.group.start("bare", [sys.executable, BARE, str(port), system.postgres.url])
        wait_for_http(f"http://127.0.0.1:{port}/readyz", system.group)
        with Load(system.port) as ours, Load(port) as bare:
            ids = ours.post(1000)["ids"]
            queue_state.wait_until_empty(system.nats.url)
            system.group.stop(*STAGES)
            pids = system.group.pid("gateway"), system.group.pid("bare")
            values_by_name: dict[str, list[float]] = {}

            def compare(name: str, requested: list[str] | None) -> None:
                gateway = _cost(pids[0], ours, requested, options.requests)
                baseline = _cost(pids[1], bare, requested, options.requests)
                for key, value in (
                    (name, gateway),
                    (f"{name}_bare", baseline),
                    (f"{name}_ratio", gateway / baseline),
                ):
                    values_by_name.setdefault(key, []).append(value)

            bare.post(500)
            bare.get(ids, 500, "completed")
            ours.get(ids, 500, "completed")
            for _ in range(options.runs):
                compare("get", ids)
            system.group.stop("status-store")
            for _ in range(options.runs):
                compare("post", None)
                time.sleep(0.2)
        return {name: statistics.median(values) for name, values in values_by_name.items()}


def main() -> None:
    """Run the benchmark and print the table. Exits with code 1 when a response is wrong or a process dies."""
    options = parse_options()
    machine = report.machine()
    try:
        figures = measure(options)
    except RuntimeError as error:
        print(f"The benchmark failed: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    rows = [["CPU ms per request", "gateway", "bare Litestar", "ratio", "target"]]
    for name, label, target in (("post", "POST /jobs", "2.0"), ("get", "GET /jobs/{id}", "1.5")):
        ours, bare, ratio = (figures[f"{name}{suffix}"] for suffix in ("", "_bare", "_ratio"))
        rows.append([label, f"{ours:.3f}", f"{bare:.3f}", f"{ratio:.2f}", target])
    print(report.table(f"{options.requests:,} requests per run, medians of {options.runs} runs\n{machine}", rows))
    report.save(options.json, figures)


if __name__ == "__main__":
    main()
