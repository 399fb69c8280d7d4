"""`make bench-peers`: the same work done by FastStream on JetStream, beside ours, in one run.

Installs the peer (requirements.txt) into an environment of its own under `.heimdex/` the first time.
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
    """The peer: a gateway and a worker for each stage, on servers of their own."""

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
    """The Python of an environment that has what requirements.txt says; made anew when that file changes."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    path = ROOT / ".heimdex" / f"peers-{digest}"
    done = path / "installed"
    if not done.exists():
        print(f"Installing {REQUIREMENTS.relative_to(ROOT)} ...", file=sys.stderr)
        venv.create(path, with_pip=True, clear=True)
        pip = [str(path / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
        done.touch()
    return path / "bin" / "python"


def options() -> argparse.Namespace:
    """What to measure, and how often."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sync", choices=("default", "always"), default="default", help="nats-server's sync_interval")
    parser.add_argument("--jobs", type=int, help="jobs a run (default 3000)")
    parser.add_argument("--runs", type=int, help="runs whose medians are shown (default 3)")
    parser.add_argument("--short", action="store_true", help="about half a minute; less exact")
    parser.add_argument("--connections", type=int, default=16, help="HTTP connections of the load generator")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    found = parser.parse_args()
    found.jobs = found.jobs or (1000 if found.short else 3000)
    found.runs = found.runs or (1 if found.short else 3)
    return found


def measure(wanted: argparse.Namespace, directory: Path) -> dict[str, report.Figures]:
    """Medians of both, the runs interleaved."""
    python = python_of_peers()
    with ExitStack() as stack:
        ours = stack.enter_context(System(directory / "ours", wanted.sync))
        peer = stack.enter_context(FastStreamJobs(directory / "peer", python, wanted.sync))
        runs: dict[str, list[report.Figures]] = {"ours": [], "peer": []}
        both: tuple[tuple[str, System | FastStreamJobs], ...] = (("ours", ours), ("peer", peer))
        loads = {name: stack.enter_context(Load(system.port, wanted.connections)) for name, system in both}
        for name, system in both:
            load_run(system, loads[name], 300)
        for _ in range(wanted.runs):
            for name, system in both:
                found, ids = load_run(system, loads[name], wanted.jobs)
                found |= get_run(system, loads[name], ids, wanted.jobs)
                idle = loads[name].idle(rounds=40, together=1, silence=0.05)
                queue_state.wait_until_empty(system.nats.url, system.stream)
                runs[name].append(found | {"idle_ms": report.spread(idle["ms"])})
        found = {name: report.median(each) for name, each in runs.items()}
        for name, system in both:
            queue_state.check_completed(system.postgres.url, 300 + wanted.runs * (wanted.jobs + 40))
            found[name]["memory"] = system.memory_bytes()
        return found


def show(wanted: argparse.Namespace, machine: str, found: dict[str, report.Figures]) -> str:
    """The table: ours, the peer, how many times ours the peer costs."""
    ours, peer = found["ours"], found["peer"]
    rows = [["", "ours", "FastStream", "ratio"], ["CPU s / 1,000 jobs"]]

    def compare(label: str, one: float, other: float, form: str) -> None:
        ratio = f"{other / one:.2f}" if one else ""
        rows.append([label, form.format(one), form.format(other) if other else "-", ratio if other else ""])

    for name in (*ours["cpu"],):
        label = "together" if name == "sum" else name
        compare(label, ours["cpu"][name], peer["cpu"].get(name, 0.0), "{:.3f}")
    rows.append(["throughput and latency"])
    compare("jobs/s, first POST to last row", ours["jobs_per_second"], peer["jobs_per_second"], "{:,.0f}")
    compare("POST/s", ours["post_per_second"], peer["post_per_second"], "{:,.0f}")
    compare("GET/s", ours["get_per_second"], peer["get_per_second"], "{:,.0f}")
    for key, label in (("post_ms", "POST"), ("get_ms", "GET"), ("idle_ms", "idle POST to completed")):
        for percent in ("p50", "p99"):
            compare(f"{label}, {percent}, ms", ours[key][percent], peer[key][percent], "{:.1f}")
    rows.append(["memory"])
    mine, theirs = (sum(each["memory"].values()) / 2**20 for each in (ours, peer))
    compare("MiB together", mine, theirs, "{:.0f}")
    title = f"{wanted.jobs:,} jobs a run, medians of {wanted.runs}, sync {wanted.sync}\n{machine}"
    return report.table(title, rows)


def main() -> None:
    """Exit code 1 for a wrong outcome."""
    wanted = options()
    machine = report.machine()
    try:
        with folder("peers") as directory:
            found = measure(wanted, directory)
    except RuntimeError as error:
        print(f"Wrong: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(show(wanted, machine, found))
    report.save(wanted.json, {"machine": machine, "options": vars(wanted), **found})


if __name__ == "__main__":
    main()
