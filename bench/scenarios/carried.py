"""Measures what parameters and outputs cost: CPU seconds per 1,000 jobs by process, with each size in turn.

    python -m bench.scenarios.carried [--jobs N] [--rounds N] [--sync always] [--json FILE]

Each round runs the same number of jobs of `mock_process`, which carry nothing, and of jobs with 1 KiB and with 16 KiB
of parameters and of output at each stage, on one system, in an order that turns. The ratios are to the jobs of
`mock_process` in the same round.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from bench.run import per_thousand
from bench.support import carrying, queue_state, report
from bench.support.load import Load
from bench.support.processes import ROOT, ByProcess, System, folder, spent_between

#: What the object, the key and the quotes add to the text.
_AROUND = len('{"text":""}')
SIZES = {"nothing": 0, "1 KiB": 1024, "16 KiB": 16 * 1024}
WARM_UP = 200


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000, help="jobs of each size in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sync", choices=("default", "always"), default="always", help="sync_interval of nats-server")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    return parser.parse_args()


def body(size: int) -> str:
    """Return the body of a job with parameters of this size in bytes; 0: of a job that carries nothing."""
    if not size:
        return json.dumps({"type": "mock_process"})
    return json.dumps({"type": "carrying", "params": {"text": "x" * (size - _AROUND)}})


def run(system: System, load: Load, size: int, jobs: int) -> ByProcess:
    """Run this many jobs, and return their CPU seconds per 1,000 by process, and the sum."""
    before = system.cpu_seconds()
    load.post(jobs, body(size))
    queue_state.wait_until_empty(system.nats.url, system.stream)
    return per_thousand(spent_between(before, system.cpu_seconds()), jobs)


def measure(options: argparse.Namespace, directory: Path) -> list[dict[str, ByProcess]]:
    """Return the costs of each round by size. Raises RuntimeError when a job has a wrong result."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {"HEIMDEX_PIPELINES": f"heimdex_contracts.mock_process,{carrying.__name__}", "PYTHONPATH": path}
    rounds: list[dict[str, ByProcess]] = []
    with System(directory, options.sync, environ=environ) as system, Load(system.port) as load:
        for size in SIZES.values():
            run(system, load, size, WARM_UP)
        names = list(SIZES)
        for number in range(options.rounds):
            turn = names[number % len(names) :] + names[: number % len(names)]
            costs = {name: run(system, load, SIZES[name], options.jobs) for name in turn}
            rounds.append({name: costs[name] for name in names})
        jobs = len(SIZES) * (WARM_UP + options.rounds * options.jobs)
        queue_state.check_completed(system.postgres.url, jobs)
    return rounds


def show(rounds: list[dict[str, ByProcess]], options: argparse.Namespace) -> str:
    """Return the table of the medians as text."""
    medians = {name: report.median([costs[name] for costs in rounds]) for name in SIZES}
    processes = list(medians["nothing"])
    rows = [["CPU s / 1,000 jobs", *processes, "ratio", "ratios of the rounds"]]
    for name, costs in medians.items():
        ratios = sorted(each[name]["sum"] / each["nothing"]["sum"] for each in rounds)
        figures = [f"{costs[process]:.3f}" for process in processes]
        middle = ratios[len(ratios) // 2]
        rows.append([name, *figures, f"{middle:.2f}", " ".join(f"{ratio:.2f}" for ratio in ratios)])
    title = f"{options.jobs:,} jobs of each size in {options.rounds} rounds, sync {options.sync}\n{report.machine()}"
    return report.table(title, rows)


def main() -> None:
    """Run the benchmark and print the table. Exits with code 1 when a job has a wrong result or a process dies."""
    options = parse_options()
    try:
        with folder("carried") as directory:
            rounds: Any = measure(options, directory)
    except RuntimeError as error:
        raise SystemExit(f"The benchmark failed: {error}") from None
    print(show(rounds, options))
    report.save(options.json, {"machine": report.machine(), "rounds": rounds})


if __name__ == "__main__":
    main()
