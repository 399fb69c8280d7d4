"""`make bench`: measures the cost of a job, the throughput, and the latency of an idle system.

It starts nats-server, Postgres and the real services with stages that do nothing, generates the load in a separate
process, and prints one table. It exits with code 1 when a job has a wrong result; a slow run is never an error.
"""

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.baselines.nats import Floor
from bench.support import queue_state, report
from bench.support.load import Load
from bench.support.processes import STAGES, ByProcess, Servers, System, folder, spent_between
from bench.support.report import Figures

PROCESSES = ("gateway", *STAGES, "status-store", "nats-server", "postgres")


def parse_options() -> argparse.Namespace:
    """Parse the command line, and fill in the defaults that depend on other options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sync",
        choices=("default", "always"),
        help="sync_interval of nats-server (default: nats-server's own default; with --cluster: always)",
    )
    parser.add_argument("--cluster", action="store_true", help="three nats-servers, with each stream on all of them")
    parser.add_argument("--replicas", type=int, default=1, help="workers per stage")
    parser.add_argument("--jobs", type=int, help="jobs per run (default 5000)")
    parser.add_argument("--runs", type=int, help="runs over which the medians are taken (default 3)")
    parser.add_argument("--connections", type=int, default=16, help="HTTP connections of the load generator")
    parser.add_argument("--floor", action="store_true", help="also measure the minimum cost of the same messages")
    parser.add_argument("--short", action="store_true", help="take about 20 s; less exact")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    if options.cluster and options.floor:
        # The floor does not retry a hand-over whose predecessor the stream's leader does not have yet.
        parser.error("--floor is measured on one nats-server only: remove --cluster")
    options.sync = options.sync or ("always" if options.cluster else "default")
    options.jobs = options.jobs or (2000 if options.short else 5000)
    options.runs = options.runs or (1 if options.short else 3)
    return options


def load_run(system: Servers, load: Load, jobs: int) -> tuple[Figures, list[str]]:
    """POST `jobs` jobs and wait until all are completed and recorded.

    Returns rates per second, latencies in milliseconds and CPU seconds per 1,000 jobs; and the ids of the jobs.
    """
    before, began = system.cpu_seconds(), time.perf_counter()
    posted = load.post(jobs)
    queue_state.wait_until_empty(system.nats.url, system.stream)
    seconds = time.perf_counter() - began
    return {
        "post_per_second": jobs / posted["seconds"],
        "post_ms": report.spread(posted["ms"]),
        "jobs_per_second": jobs / seconds,
        "cpu": per_thousand(spent_between(before, system.cpu_seconds()), jobs),
        "load_generator": 1000 * posted["cpu"] / jobs,
    }, posted["ids"]


def get_run(system: Servers, load: Load, ids: list[str], count: int) -> Figures:
    """Send `count` GETs for these completed jobs, in turn.

    Returns the rate per second, latencies in milliseconds and CPU seconds per 1,000 GETs.
    """
    before = system.cpu_seconds()
    sample = load.get(ids, count, "completed")
    spent = spent_between(before, system.cpu_seconds())
    return {
        "get_per_second": count / sample["seconds"],
        "get_ms": report.spread(sample["ms"]),
        "get_cpu": {name: 1000 * spent[name] / count for name in ("gateway", "postgres", "nats-server")},
    }


def idle_run(system: System, load: Load, *, short: bool) -> Figures:
    """Measure an idle system: the latency of one job, of two simultaneous jobs, and the CPU use without requests.

    Returns milliseconds from POST to completed, and by process the CPU use in percent of a core.
    """
    one = load.idle(rounds=20 if short else 200, together=1, silence=0.05)
    rounds, silence = (3, 2.0) if short else (6, 10.0)
    two = load.idle(rounds=rounds, together=2, silence=silence)
    before, began = system.cpu_seconds(), time.perf_counter()
    time.sleep(silence)
    spent, seconds = spent_between(before, system.cpu_seconds()), time.perf_counter() - began
    return {
        "idle_ms": report.spread(one["ms"]),
        "idle_rounds": len(one["ms"]),
        "two_ms": report.spread(two["ms"]),
        "two_silence": silence,
        "two_rounds": rounds,
        "idle_percent": {name: 100 * spent[name] / seconds for name in spent},
    }


def per_thousand(spent: ByProcess, jobs: int) -> ByProcess:
    """Return the CPU seconds per 1,000 jobs by process, and their sum."""
    costs = {name: 1000 * seconds / jobs for name, seconds in spent.items()}
    return {**costs, "sum": sum(costs.values())}


def measure(options: argparse.Namespace, directory: Path) -> Figures:
    """Run every requested measurement. Raises RuntimeError when a job has a wrong result or a process dies."""
    figures: Figures = {"machine": report.machine(), "options": vars(options)}
    with ExitStack() as stack:
        ours = System(directory / "ours", options.sync, options.replicas, clustered=options.cluster)
        system = stack.enter_context(ours)
        load = stack.enter_context(Load(system.port, options.connections))
        floor = None
        if options.floor:
            floor = stack.enter_context(Floor(directory / "floor", options.sync, options.replicas))
        warm_up = 300
        load_run(system, load, warm_up)
        if floor:
            floor.run(warm_up)
        runs, floors = [], []
        for _ in range(options.runs):
            run, ids = load_run(system, load, options.jobs)
            runs.append(run | get_run(system, load, ids, 2 * options.jobs))
            if floor:
                floors.append(floor.run(options.jobs))
        figures["ours"] = report.median(runs)
        figures["ours"]["memory"] = system.memory_bytes()
        if floors:
            figures["floor"] = report.median(floors)
            figures["ratio"] = report.median(
                [{"sum": run["cpu"]["sum"] / other["cpu"]["sum"]} for run, other in zip(runs, floors, strict=True)]
            )
            floor.close()  # type: ignore[union-attr]
        idle = idle_run(system, load, short=options.short)
        figures["ours"] |= idle
        jobs = warm_up + options.runs * options.jobs + idle["idle_rounds"] + 2 * idle["two_rounds"]
        queue_state.wait_until_empty(system.nats.url)
        queue_state.check_completed(system.postgres.url, jobs)
        figures["said"] = system.group.log_lines()
    return figures


def show(figures: Figures) -> str:
    """Return the table of the figures as text."""
    options, ours = figures["options"], figures["ours"]
    floor = figures.get("floor")
    rows: list[list[str]] = [
        [f"HTTP, {options['connections']} connections", "per second", "p50", "p99"],
        ["POST", f"{ours['post_per_second']:,.0f}", *_ms(ours["post_ms"])],
        ["GET", f"{ours['get_per_second']:,.0f}", *_ms(ours["get_ms"])],
        ["jobs, from the first POST to the last row", f"{ours['jobs_per_second']:,.0f}"],
        [f"idle system, stages of 0 s, GET every 2 ms, {ours['idle_rounds']} rounds", "", "p50", "p99"],
        ["POST to completed", "", *_ms(ours["idle_ms"])],
        [f"two at once after {ours['two_silence']:g} s idle ({ours['two_rounds']} rounds)", "", *_ms(ours["two_ms"])],
        ["by process", "CPU s / 1,000 jobs", "floor", "idle, % of a core", "MiB"],
    ]
    names = [name for name in PROCESSES if name in ours["cpu"]]
    for name in names:
        least = f"{floor['cpu'].get(name, 0.0):.3f}" if floor else ""
        percent, memory = ours["idle_percent"][name], ours["memory"][name] / 2**20
        rows.append([name, f"{ours['cpu'][name]:.3f}", least, f"{percent:.1f}", f"{memory:.0f}"])
    idle_sum = sum(ours["idle_percent"][name] for name in names)
    memory_sum = sum(ours["memory"][name] for name in names) / 2**20
    least = f"{floor['cpu']['sum']:.3f}" if floor else ""
    rows.append(["total", f"{ours['cpu']['sum']:.3f}", least, f"{idle_sum:.1f}", f"{memory_sum:.0f}"])
    if floor:
        rows.append(["Heimdex / floor", f"{figures['ratio']['sum']:.2f}"])
    services = sum(ours["idle_percent"][name] for name in PROCESSES[:5] if name in names)
    rows.append(["total of the five services, idle", "", "", f"{services:.1f}"])
    get_cpu = ours["get_cpu"]
    rows.append(["GET: gateway, CPU s / 1,000", f"{get_cpu['gateway']:.3f}"])
    rows.append(["GET: postgres, CPU s / 1,000", f"{get_cpu['postgres']:.3f}"])
    rows.append(["(the load generator, CPU s / 1,000 POSTs)", f"{ours['load_generator']:.3f}"])
    title = (
        f"{options['jobs']:,} jobs per run, medians of {options['runs']} runs; "
        f"{3 if options['cluster'] else 1} nats-server(s), sync {options['sync']}, "
        f"{options['replicas']} worker(s) per stage\n{figures['machine']}"
    )
    return report.table(title, rows)


def _ms(spread: dict[str, float]) -> list[str]:
    return [f"{spread['p50']:.1f} ms", f"{spread['p99']:.1f} ms"]


def main() -> None:
    """Run the benchmark and print the table. Exits with code 1 when a job has a wrong result or a process dies."""
    options = parse_options()
    try:
        with folder("run") as directory:
            figures: dict[str, Any] = measure(options, directory)
    except RuntimeError as error:
        print(f"The benchmark failed: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(show(figures))
    for line in figures["said"][:20]:
        print(f"logged by {line}", file=sys.stderr)
    report.save(options.json, figures)


if __name__ == "__main__":
    main()
