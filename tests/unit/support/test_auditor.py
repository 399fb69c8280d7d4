"""The auditor reports each kind of forbidden event, and ignores normal events and those that a test allows."""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NewSystem
from tests.support.auditor import ASKED_FOR, CAUSES, KINDS, Auditor, Finding, Line, describe, known
from tests.support.services import ROOT, Service
from tests.support.waiting import eventually

START = datetime(2026, 1, 1, tzinfo=UTC)
JOB = {"job_id": "a", "stage": "extracting"}


class Logs:
    """The log entries of processes, one moment after the other."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def say(self, event: str, process: str = "one", stopping: bool = False, **fields: Any) -> "Logs":
        at = (START + timedelta(milliseconds=len(self.lines))).isoformat().replace("+00:00", "Z")
        self.lines.append(Line(process, {"event": event, "timestamp": at, **fields}, stopping))
        return self

    def begin(self, attempt: int, run: int = 1, **fields: Any) -> "Logs":
        return self.say("attempt_started", **{**JOB, "attempt": attempt, "step": 0, "run": run, **fields})

    def fail(self, attempt: int, error: str = f"{ASKED_FOR[0]} at extracting") -> "Logs":
        return self.say("attempt_failed", **JOB, attempt=attempt, error=error)

    def hand_back(self, attempt: int, stopping: bool = True) -> "Logs":
        return self.say("job_handed_back", stopping=stopping, **JOB, attempt=attempt)

    @property
    def kinds(self) -> list[str]:
        """Return the kinds that the auditor reports for these entries."""
        return [finding.kind for finding in Auditor().look(self.lines)]


#: Per kind, logs in which the auditor finds that, once.
FAULTS = {
    "superseded": Logs().say("delivery_superseded", **JOB, reason="the job already went on"),
    "dropped": Logs().say("delivery_dropped", **JOB, canceled=False),
    "restored": Logs().say("job_restored", job_id="a"),
    "callbacks_restored": Logs().say("callbacks_restored", count=1),
    "lost": Logs().say("deliveries_lost", count=1),
    "given_up": Logs().say("delivery_given_up", subject="heimdex.jobs.extracting.a"),
    "behind": Logs().say("leader_behind", **JOB),
    "left": Logs().say("left_to_redelivery", held=1),
    "handed_back": Logs().hand_back(1, stopping=False),
    "stray": Logs().say("stray_removed"),
    "unusable": Logs().say("message_unusable"),
    "repeated": Logs().begin(1).begin(1),
    "errors": Logs().begin(1).fail(1, "OSError: no space left"),
    "worker_lost": Logs().say("job_failed", **JOB, attempt=5, error="The stage extracting failed: worker lost (...)."),
    "isolated": Logs().say("attempt_isolated", **JOB),
    "refused": Logs().say("unknown_work", job_id="a"),
    "unclaimed": Logs().say("claim_not_stored", job_id="a"),
    "topology": Logs().say("starting").say("ready").say("consumer_configured"),
    "forked": Logs().say("forked_child_ended"),
    "exit_refused": Logs().say("exit_refused"),
    "blocked": Logs().say("loop_blocked_too_long", **JOB),
    "defect": Logs().say("delivery_broken"),
    "not_json": Logs().say("not_json", line="Traceback"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_reported_unless_its_own_allowance_is_set(kind: str) -> None:
    lines = FAULTS[kind].lines
    assert FAULTS[kind].kinds == [kind]
    allowing, others = Auditor(), Auditor()
    allowing.allow(kind)
    others.allow(*(KINDS.keys() - {kind}))
    assert not allowing.look(lines)
    assert len(others.look(lines)) == 1


@pytest.mark.parametrize("cause", CAUSES)
def test_a_cause_allows_the_kinds_that_it_explains_and_no_others(cause: str) -> None:
    auditor = Auditor()
    auditor.allow(cause)
    passed_over = {kind for kind, logs in FAULTS.items() if not auditor.look(logs.lines)}
    assert passed_over == set(CAUSES[cause])


@pytest.mark.parametrize(
    "logs",
    [
        Logs().begin(1, run=1).begin(2, run=1),
        Logs().begin(2),
        Logs().begin(1).fail(1).begin(2).begin(2),
        Logs().begin(1).fail(1).begin(2).begin(1),
        Logs().begin(1).fail(1).begin(3),
        Logs().begin(1).hand_back(1).begin(1, step=1).begin(1, step=1),
        Logs().begin(1).hand_back(1).begin(2, step=1),
        Logs().begin(1).say("attempt_failed", job_id="b", stage="extracting", attempt=1, error=ASKED_FOR[1]).begin(2),
        Logs().begin(1).say("attempt_failed", job_id="a", stage="analyzing", attempt=1, error=ASKED_FOR[1]).begin(2),
    ],
)
def test_a_stage_that_begins_again_without_a_reason_is_reported(logs: Logs) -> None:
    assert logs.kinds == ["repeated"]


@pytest.mark.parametrize(
    "logs",
    [
        Logs().begin(1).fail(1).begin(2).fail(2).begin(3),
        Logs().begin(1).begin(1, stage="analyzing").begin(1, job_id="b"),
        Logs().begin(1).fail(1).begin(2).begin(1, run=2).fail(1).begin(2, run=2),
        Logs().begin(1).hand_back(1).begin(1, step=1).hand_back(1).begin(1, step=2),
        Logs().begin(1).fail(1).begin(2).hand_back(2).begin(2, step=1),
        # Published, and begun by another worker, before it was logged.
        Logs().begin(1).begin(1, step=1, process="two").hand_back(1),
        # Handed back before it began.
        Logs().hand_back(1).begin(1, step=1),
        Logs().say("job_failed", **JOB, attempt=4, error=f"The stage extracting failed: ValueError: {ASKED_FOR[1]} so"),
        Logs().say("delivery_dropped", **JOB, canceled=True),
        Logs().say("callback_handed_back", stopping=True, job_id="a"),
    ],
)
def test_effects_that_the_test_requested_are_not_findings(logs: Logs) -> None:
    assert logs.kinds == []


def test_only_services_that_start_together_may_create_the_streams() -> None:
    logs = Logs().say("starting", "one").say("starting", "two").say("stream_created", "one").say("ready", "one")
    logs.say("consumer_configured", "two").say("ready", "two")
    assert logs.kinds == []
    assert logs.say("stream_created", "two").kinds == ["topology"]
    assert logs.say("starting", "three").say("consumer_configured", "three").kinds == ["topology"] * 2


def test_an_allowance_with_fields_covers_only_entries_with_these_fields() -> None:
    auditor = Auditor()
    auditor.allow("stray", "dropped", job_id="a")
    logs = Logs().say("delivery_dropped", job_id="a").say("delivery_dropped", job_id="b").say("stray_removed")
    assert [finding.line for finding in auditor.look(logs.lines)] == logs.lines[1:]


def test_an_unknown_kind_and_an_empty_allowance_are_refused() -> None:
    for kinds in (("superseeded",), ("dropped", "everything"), ()):
        with pytest.raises(ValueError, match=r"superseeded|everything|must name at least one"):
            Auditor().allow(*kinds)
    with pytest.raises(ValueError, match=r"Unknown kind or cause: lots\."):
        known(["lots"])


def test_the_lines_of_running_processes_are_ordered_across_several_audits() -> None:
    logs = Logs().begin(1).fail(1).begin(2)
    auditor = Auditor()
    began, failed, again = logs.lines
    now = START + timedelta(milliseconds=1)
    # The second worker's line is there, that of the first is not read yet.
    assert not auditor.look([began, again], until=now)
    assert not auditor.look([failed])
    assert [finding.kind for finding in auditor.look(Logs().begin(2).lines)] == ["repeated"]


def test_every_requested_error_is_one_that_a_test_pipeline_or_a_worker_raises() -> None:
    folders = (ROOT / "tests" / "support" / "pipelines", ROOT / "stage-workers" / "heimdex_stage_worker")
    texts = [path.read_text() for folder in folders for path in folder.rglob("*.py")]
    for error in ASKED_FOR:
        words = error.removesuffix(" StopIteration")
        assert any(words in text for text in texts), error


SAYS = """
import json, sys, time
for line in sys.argv[1:]:
    print(line, file=sys.stderr, flush=True)
time.sleep(60)
"""


def _service(folder: Path, *events: str) -> Service:
    entries = [
        json.dumps({"event": event, "job_id": "a", "timestamp": START.isoformat(), "canceled": False})
        for event in events
    ]
    return Service("stand-in", [sys.executable, "-c", SAYS, *entries], {}, folder / f"{len(events)}.log")


@pytest.mark.allows("stray")
async def test_a_systems_logs_are_audited_while_it_runs_each_line_once(new_system: NewSystem, scratch: Path) -> None:
    system = new_system("nats://127.0.0.1:1", "postgresql://nobody@127.0.0.1:1/none")
    system.services.append(_service(scratch, "stray_removed", "delivery_dropped"))
    await eventually(lambda: len(system.services[0].logs) == 2)
    with pytest.raises(AssertionError, match="delivery_dropped"):
        system.check_logs()
    system.check_logs()
    system.allow("superseded", job_id="a")
    system.services.append(_service(scratch, "stray_removed", "delivery_superseded", "stray_removed"))
    await eventually(lambda: len(system.services[1].logs) == 3)
    system.allow_only()
    system.services.append(_service(scratch, *["stray_removed"] * 4))
    await eventually(lambda: len(system.services[2].logs) == 4)
    with pytest.raises(AssertionError, match="stray"):
        system.check_logs()


def test_findings_are_described_by_kind_with_their_count_and_the_log_entries() -> None:
    strays = [Finding("stray", Line("<gateway 17>", {"event": "stray_removed", "sequence": n})) for n in range(40)]
    report = describe([*strays, Finding("dropped", Line("<extracting 18>", {"event": "delivery_dropped"}))])
    assert f"stray (40): {KINDS['stray']}" in report
    assert "<gateway 17> logged {'event': 'stray_removed', 'sequence': 0}" in report
    assert "dropped (1)" in report
    assert "<extracting 18>" in report
    assert len(report.splitlines()) < 10
