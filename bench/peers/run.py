"""`make bench-peers`: compares Heimdex with an implementation of the same work in FastStream on JetStream, in one run.

The first run installs the peer (requirements.txt) into a separate virtual environment below `.heimdex/`.
"""

import argparse
import hashlib
import subprocess
import sys
import venv
from contextlib import ExitStack
from pathlib import Path

from bench.run import get_run, load_run
from bench.support import queue_state, report
from bench.support.load import Load
from bench.support.processes import ROOT, STAGES, Servers, System, folder, wait_for_http
from heimdex_cli.embedded.ports import free_port

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"


class FastStreamJobs(Servers):
    """The peer: a gateway and a worker for each stage, with their own NATS and Postgres servers."""

    stream = "JOBS"

    def __init__(self, directory: Path, python: Path, sync: str) -> None:
        super().__init__(directory, sync)
        self._python = python
        self.port = 0

    def __enter__(self) -> "FastStreamJobs":
        super().__enter__()
        try:
            self.port = free_port()
            environ = {"NATS_URL": self.nats.url, "DATABASE_URL": self.postgres.url}
            script = HERE / "faststream_jobs.py"
            for stage in STAGES:
                self.group.start(stage, [self._python, script, stage], environ)
            self.group.start("gateway", [self._python, script, "gateway", str(self.port)], environ)
            wait_for_http(f"http://127.0.0.1:{self.port}/readyz", self.group)
            for stage in STAGES:
                queue_state.wait_for_consumer(self.nats.url, self.stream, stage)
        except BaseException:
            self.close()
            raise
        return self


def python_of_peers() -> Path:
    """Return the Python of a virtual environment with the packages of requirements.txt.

    The environment is created when there is none for the present content of that file.
    """
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    path = ROOT / ".heimdex" / f"peers-{digest}"
    stamp = path / "installed"
    if not stamp.exists():
        print(f"Installing {REQUIREMENTS.relative_to(ROOT)} ...", file=sys.stderr)
        venv.create(path, with_pip=True, clear=True)
        pip = [str(path / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
        stamp.touch()
    return path / "bin" / "python"


def parse_options() -> argparse.Namespace:
    """Parse the command line, and fill in the defaults that depend on other options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sync", choices=("default", "always"), default="default", help="sync_interval of nats-server")
    parser.add_argument("--jobs", type=int, help="jobs per run (default 3000)")
    parser.add_argument("--runs", type=int, help="runs over which the medians are taken (default 3)")
    parser.add_argument("--short", action="store_true", help="take about half a minute; less exact")
    parser.add_argument("--connections", type=int, default=16, help="HTTP connections of the load generator")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    options.jobs = options.jobs or (1000 if options.short else 3000)
    options.runs = options.runs or (1 if options.short else 3)
    return options


def measure(options: argparse.Namespace, directory: Path) -> dict[str, report.Figures]:
    """Return the medians of both systems, whose runs alternate. Raises RuntimeError when a job has a wrong result."""
    python = python_of_peers()
    with ExitStack() as stack:
        ours = stack.enter_context(System(directory / "ours", options.sync))
        peer = stack.enter_context(FastStreamJobs(directory / "peer", python, options.sync))
        runs: dict[str, list[report.Figures]] = {"ours": [], "peer": []}
        both: tuple[tuple[str, System | FastStreamJobs], ...] = (("ours", ours), ("peer", peer))
        loads = {name: stack.enter_context(Load(system.port, options.connections)) for name, system in both}
        for name, system in both:
            load_run(system, loads[name], 300)
        for _ in range(options.runs):
            for name, system in both:
                run, ids = load_run(system, loads[name], options.jobs)
                run |= get_run(system, loads[name], ids, options.jobs)
                idle = loads[name].idle(rounds=40, together=1, silence=0.05)
                queue_state.wait_until_empty(system.nats.url, system.stream)
                runs[name].append(run | {"idle_ms": report.spread(idle["ms"])})
        figures = {name: report.median(each) for name, each in runs.items()}
        for name, system in both:
            queue_state.check_completed(system.postgres.url, 300 + options.runs * (options.jobs + 40))
            figures[name]["memory"] = system.memory_bytes()
        return figures


def show(options: argparse.Namespace, machine: str, figures: dict[str, report.Figures]) -> str:
    """Return the table as text: Heimdex's figure, the peer's, and the peer's divided by Heimdex's."""
    ours, peer = figures["ours"], figures["peer"]
    rows = [["", "Heimdex", "FastStream", "ratio"], ["CPU s / 1,000 jobs"]]

    def compare(label: str, one: float, other: float, form: str) -> None:
        ratio = f"{other / one:.2f}" if one else ""
        rows.append([label, form.format(one), form.format(other) if other else "-", ratio if other else ""])

    for name in (*ours["cpu"],):
        label = "total" if name == "sum" else name
        compare(label, ours["cpu"][name], peer["cpu"].get(name, 0.0), "{:.3f}")
    rows.append(["throughput and latency"])
    compare("jobs/s, first POST to last row", ours["jobs_per_second"], peer["jobs_per_second"], "{:,.0f}")
    compare("POST/s", ours["post_per_second"], peer["post_per_second"], "{:,.0f}")
    compare("GET/s", ours["get_per_second"], peer["get_per_second"], "{:,.0f}")
    for key, label in (("post_ms", "POST"), ("get_ms", "GET"), ("idle_ms", "idle POST to completed")):
        for percent in ("p50", "p99"):
            compare(f"{label}, {percent}, ms", ours[key][percent], peer[key][percent], "{:.1f}")
    rows.append(["memory"])
    our_memory, peer_memory = (sum(each["memory"].values()) / 2**20 for each in (ours, peer))
    compare("total, MiB", our_memory, peer_memory, "{:.0f}")
    title = f"{options.jobs:,} jobs per run, medians of {options.runs} runs, sync {options.sync}\n{machine}"
    return report.table(title, rows)


def main() -> None:
    """Run the comparison and print the table. Exits with code 1 when a job has a wrong result or a process dies."""
    options = parse_options()
    machine = report.machine()
    try:
        with folder("peers") as directory:
            figures = measure(options, directory)
    except RuntimeError as error:
        print(f"The benchmark failed: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(show(options, machine, figures))
    report.save(options.json, {"machine": machine, "options": vars(options), **figures})


if __name__ == "__main__":
    main()
