"""`make bench`: what a job costs, how many go through, and how soon an idle system answers.

Starts nats-server, Postgres and the real services with stages that do nothing, loads them from a process of its own,
and prints one table. A wrong outcome ends it with exit code 1; a time never does.
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


def options() -> argparse.Namespace:
    """What to measure, and how often."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sync",
        choices=("default", "always"),
        help="nats-server's sync_interval (default: its own default; with --cluster always)",
    )
    parser.add_argument("--cluster", action="store_true", help="three nats-servers, each stream on all of them")
    parser.add_argument("--replicas", type=int, default=1, help="workers of each stage")
    parser.add_argument("--jobs", type=int, help="jobs a run (default 5000)")
    parser.add_argument("--runs", type=int, help="runs whose medians are shown (default 3)")
    parser.add_argument("--connections", type=int, default=16, help="HTTP connections of the load generator")
    parser.add_argument("--floor", action="store_true", help="measure also the least that the same messages can cost")
    parser.add_argument("--short", action="store_true", help="about 20 s; less exact")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    found = parser.parse_args()
    if found.cluster and found.floor:
        # It repeats no hand-over that the stream's leader does not know the predecessor of yet.
        parser.error("--floor is measured on one nats-server only: leave out --cluster")
    found.sync = found.sync or ("always" if found.cluster else "default")
    found.jobs = found.jobs or (2000 if found.short else 5000)
    found.runs = found.runs or (1 if found.short else 3)
    return found


def load_run(system: Servers, load: Load, jobs: int) -> tuple[Figures, list[str]]:
    """POST `jobs` jobs, wait until all are completed and recorded; what that cost."""
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
    """GET them in turn, all of them completed."""
    before = system.cpu_seconds()
    got = load.get(ids, count, "completed")
    spent = spent_between(before, system.cpu_seconds())
    return {
        "get_per_second": count / got["seconds"],
        "get_ms": report.spread(got["ms"]),
        "get_cpu": {name: 1000 * spent[name] / count for name in ("gateway", "postgres", "nats-server")},
    }


def idle_run(system: System, load: Load, *, short: bool) -> Figures:
    """How soon an idle system answers, and what it costs when nobody asks."""
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
    """Seconds of CPU per 1,000 jobs by process, and their sum."""
    found = {name: 1000 * seconds / jobs for name, seconds in spent.items()}
    return {**found, "sum": sum(found.values())}


def measure(wanted: argparse.Namespace, directory: Path) -> Figures:
    """Everything that was asked for. Raises RuntimeError for a wrong outcome."""
    figures: Figures = {"machine": report.machine(), "options": vars(wanted)}
    with ExitStack() as stack:
        ours = System(directory / "ours", wanted.sync, wanted.replicas, clustered=wanted.cluster)
        system = stack.enter_context(ours)
        load = stack.enter_context(Load(system.port, wanted.connections))
        floor = stack.enter_context(Floor(directory / "floor", wanted.sync, wanted.replicas)) if wanted.floor else None
        warm_up = 300
        load_run(system, load, warm_up)
        if floor:
            floor.run(warm_up)
        runs, floors = [], []
        for _ in range(wanted.runs):
            found, ids = load_run(system, load, wanted.jobs)
            runs.append(found | get_run(system, load, ids, 2 * wanted.jobs))
            if floor:
                floors.append(floor.run(wanted.jobs))
        figures["ours"] = report.median(runs)
        figures["ours"]["memory"] = system.memory_bytes()
        if floors:
            figures["floor"] = report.median(floors)
            figures["ratio"] = report.median(
                [{"sum": run["cpu"]["sum"] / other["cpu"]["sum"]} for run, other in zip(runs, floors, strict=True)]
            )
            floor.close()  # type: ignore[union-attr]
        idle = idle_run(system, load, short=wanted.short)
        figures["ours"] |= idle
        jobs = warm_up + wanted.runs * wanted.jobs + idle["idle_rounds"] + 2 * idle["two_rounds"]
        queue_state.wait_until_empty(system.nats.url)
        queue_state.check_completed(system.postgres.url, jobs)
        figures["said"] = system.group.log_lines()
    return figures


def show(figures: Figures) -> str:
    """The table."""
    wanted, ours = figures["options"], figures["ours"]
    floor = figures.get("floor")
    rows: list[list[str]] = [
        [f"HTTP, {wanted['connections']} connections", "per second", "p50", "p99"],
        ["POST", f"{ours['post_per_second']:,.0f}", *_ms(ours["post_ms"])],
        ["GET", f"{ours['get_per_second']:,.0f}", *_ms(ours["get_ms"])],
        ["jobs, from the first POST to the last row", f"{ours['jobs_per_second']:,.0f}"],
        [f"idle, GET every 2 ms, stages of 0 s, {ours['idle_rounds']} times", "", "p50", "p99"],
        ["POST to completed", "", *_ms(ours["idle_ms"])],
        [f"two at once after {ours['two_silence']:g} s ({ours['two_rounds']} times)", "", *_ms(ours["two_ms"])],
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
    rows.append(["together", f"{ours['cpu']['sum']:.3f}", least, f"{idle_sum:.1f}", f"{memory_sum:.0f}"])
    if floor:
        rows.append(["ours / floor", f"{figures['ratio']['sum']:.2f}"])
    services = sum(ours["idle_percent"][name] for name in PROCESSES[:5] if name in names)
    rows.append(["the five services only, idle", "", "", f"{services:.1f}"])
    get_cpu = ours["get_cpu"]
    rows.append(["GET: gateway, CPU s / 1,000", f"{get_cpu['gateway']:.3f}"])
    rows.append(["GET: postgres, CPU s / 1,000", f"{get_cpu['postgres']:.3f}"])
    rows.append(["(the load generator, CPU s / 1,000 POSTs)", f"{ours['load_generator']:.3f}"])
    title = (
        f"{wanted['jobs']:,} jobs a run, medians of {wanted['runs']}; {3 if wanted['cluster'] else 1} nats-server(s), "
        f"sync {wanted['sync']}, {wanted['replicas']} worker(s) a stage\n{figures['machine']}"
    )
    return report.table(title, rows)


def _ms(spread: dict[str, float]) -> list[str]:
    return [f"{spread['p50']:.1f} ms", f"{spread['p99']:.1f} ms"]


def main() -> None:
    """Exit code 1 for a wrong outcome."""
    wanted = options()
    try:
        with folder("run") as directory:
            figures: dict[str, Any] = measure(wanted, directory)
    except RuntimeError as error:
        print(f"Wrong: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(show(figures))
    for line in figures["said"][:20]:
        print(f"logged by {line}", file=sys.stderr)
    report.save(wanted.json, figures)


if __name__ == "__main__":
    main()
