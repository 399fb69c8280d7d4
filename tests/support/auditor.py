"""Searches the logs of the services for events that must not happen unless a test injects a fault.

It is on by default for every `System`. A test that injects a fault allows what the fault may cause, and nothing else:
`@pytest.mark.allows("superseded")` for the whole test or module, `system.allow("superseded", job_id=...)` within one.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

#: The kinds of findings, which a test may allow, with their descriptions.
KINDS: Final = {
    "superseded": "the broker rejected a hand-over, because the message already had another successor",
    "dropped": "a delivery was dropped, because its job had moved on without it and was not canceled",
    "restored": "a job was published again from its row",
    "callbacks_restored": "a callback was published again from its row",
    "lost": "deliveries disappeared from their stream while they were held",
    "given_up": "a message was published again, or recorded, because NATS had stopped delivering it",
    "behind": "a delivery was returned to the stream, because the stream's leader did not have it in time",
    "left": "a delivery was left to be redelivered after its lease",
    "handed_back": "a process that was not asked to stop handed work back",
    "stray": "a leftover message that blocked a job was removed",
    "unusable": "a message became a dead letter",
    "repeated": "a stage started again although its earlier attempt had neither failed nor been handed back",
    "errors": "an attempt failed for a reason that no test had requested",
    "worker_lost": "an attempt or a job failed with 'worker lost'",
    "isolated": "an attempt was suspected of killing its worker, and ran in a subprocess",
    "refused": "a worker returned a job whose type or stage it does not know",
    "unclaimed": "an attempt ran without its claim, because the stream of claims did not accept it",
    "topology": "a stream or a consumer was created or changed after the start",
    "forked": "a process that a stage forked returned to its worker's code, and was ended",
    "exit_refused": "code of a stage tried to end its worker",
    "blocked": "code of a stage blocked the event loop for so long that its worker gave up",
    "defect": "the code reached a state that it does not expect",
    "not_json": "a line of a log is not a JSON object",
}

#: Common faults, which a test may name in place of the kinds that they may cause.
CAUSES: Final = {
    # nats-server loses what it has not written to the kernel: the last acknowledgements, but no message. Streams and
    # consumers in memory are created again.
    "nats_killed": ("topology", "dropped", "repeated", "superseded", "lost"),
    # The same for one node of three, but the other nodes keep the streams in memory.
    "node_killed": ("dropped", "repeated", "superseded", "lost"),
    # Nothing is lost. Messages that were acknowledged meanwhile are redelivered, and held ones go to other workers.
    "nats_silent": ("dropped", "repeated", "superseded", "left"),
}

#: The events that are always findings, with their kinds.
_EVENTS: Final = {
    "delivery_superseded": "superseded",
    "delivery_declined": "superseded",
    "attempt_lost": "repeated",
    "unknown_work": "refused",
    "claim_not_stored": "unclaimed",
    "job_restored": "restored",
    "jobs_restored": "restored",
    "job_not_restored_yet": "restored",
    "job_not_restorable": "restored",
    "accepted_jobs_restored": "restored",
    "accepted_jobs_unchecked": "restored",
    "callbacks_restored": "callbacks_restored",
    "callback_not_restorable": "callbacks_restored",
    "deliveries_lost": "lost",
    "delivery_given_up": "given_up",
    "leader_behind": "behind",
    "left_to_redelivery": "left",
    "stray_removed": "stray",
    "message_unusable": "unusable",
    "attempt_isolated": "isolated",
    "unknown_job_failed": "refused",
    "forked_child_ended": "forked",
    "exit_refused": "exit_refused",
    "loop_blocked_too_long": "blocked",
    "defect": "defect",
    **{
        f"{work}_broken": "defect"
        for work in (
            "blocked_loop",
            "delivery",
            "settlement",
            "pruning",
            "reconnection",
            "refusals",
            "request",
            "sweep",
            "topology",
        )
    },
    "not_json": "not_json",
}
#: The events whose meaning depends on earlier entries, or on their own fields.
_JUDGED: Final = {
    "starting",
    "ready",
    "stream_created",
    "stream_configured",
    "consumer_configured",
    "delivery_dropped",
    "job_handed_back",
    "callback_handed_back",
    "attempt_started",
    "attempt_failed",
    "job_failed",
}
#: Parts of the errors of attempts that fail on request: by `fail_at_stage`, or in the pipelines beside this file.
ASKED_FOR: Final = (
    "fail_at_stage asked this job to fail",
    "the script says",
    "this job always raises",
    "this job is tired",
    "the stage raised StopIteration",
)


class Line(NamedTuple):
    """A log entry of one process. told_to_stop: whether the test has requested the process to stop, at any time."""

    process: str
    entry: dict[str, Any]
    told_to_stop: bool = False


class Finding(NamedTuple):
    """A log entry that no fault of the test explains."""

    kind: str
    line: Line


def describe(findings: list[Finding]) -> str:
    """Return a text with each kind, the number of its findings, and the first three of them."""
    text = ["The logs have entries that no fault of this test explains (tests/support/auditor.py):"]
    for kind, number in Counter(finding.kind for finding in findings).items():
        text.append(f"{kind} ({number}): {KINDS[kind]}:")
        lines = [finding.line for finding in findings if finding.kind == kind]
        text += [f"    {line.process} logged {line.entry}" for line in lines[:3]]
    return "\n".join(text)


class _Allowance(NamedTuple):
    kinds: frozenset[str]
    fields: dict[str, Any]

    def covers(self, finding: Finding) -> bool:
        entry = finding.line.entry
        return finding.kind in self.kinds and all(entry.get(name) == value for name, value in self.fields.items())


def known(kinds: Iterable[str]) -> frozenset[str]:
    """Return these kinds and the kinds of these causes. Raises ValueError for a name that is neither."""
    expanded = frozenset(kind for name in kinds for kind in CAUSES.get(name, (name,)))
    if unknown := expanded - KINDS.keys():
        names = ", ".join((*KINDS, *CAUSES))
        raise ValueError(f"Unknown kind or cause: {', '.join(sorted(unknown))}. Known are {names}.")
    return expanded


class Auditor:
    """Audits the logs of one system. It keeps its state, so that `look` can be called again while the services run."""

    def __init__(self) -> None:
        self._allowed: list[_Allowance] = []
        self._later: list[Line] = []
        self._starting: set[str] = set()
        self._ready: set[str] = set()
        #: The (job, run, stage) that have started.
        self._began: set[tuple[str, int, str]] = set()
        #: By (job, stage): the attempts that may start because the one before failed.
        self._due: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        #: By (job, stage, attempt): how often it may start again because it was handed back.
        self._handed_back: Counter[tuple[str, str, int]] = Counter()

    def allow(self, *kinds: str, **fields: Any) -> None:
        """Ignore findings of these kinds or causes; with fields, only those whose log entry has them.

        Raises ValueError for an unknown kind, or when there is none.
        """
        if not kinds:
            raise ValueError("An allowance must name at least one kind or cause.")
        self._allowed.append(_Allowance(known(kinds), fields))

    def forbid(self) -> None:
        """Remove every allowance."""
        self._allowed.clear()

    def check(self, lines: Iterable[Line], until: datetime | None = None) -> None:
        """Call `look`, and raise AssertionError with a description when it returns findings."""
        if findings := self.look(lines, until):
            raise AssertionError(describe(findings))

    def look(self, lines: Iterable[Line], until: datetime | None = None) -> list[Finding]:
        """Return the findings in these lines, which follow the lines of earlier calls.

        until: keep the entries from this time on for the next call. While several processes run, only this allows to
        put their lines in order.
        """
        new = [line for line in lines if line.entry.get("event") in _JUDGED | _EVENTS.keys()]
        for line in new:
            if line.entry["event"] == "job_handed_back":
                # Regardless of its time: a worker logs it after the publish, and another may have started by then.
                self._handed_back[line.entry["job_id"], line.entry["stage"], line.entry["attempt"]] += 1
        ordered = sorted((*self._later, *new), key=lambda line: _time(line.entry))
        self._later = [line for line in ordered if until is not None and _time(line.entry) >= until]
        findings = [
            Finding(kind, line)
            for line in ordered[: len(ordered) - len(self._later)]
            if (kind := _EVENTS.get(line.entry["event"]) or self._judge(line)) is not None
        ]
        return [finding for finding in findings if not any(allowance.covers(finding) for allowance in self._allowed)]

    def _judge(self, line: Line) -> str | None:
        entry, process = line.entry, line.process
        match entry["event"]:
            case "starting":
                # Processes that start together create the streams and consumers together.
                if not self._ready:
                    self._starting.add(process)
            case "ready":
                self._starting.discard(process)
                self._ready.add(process)
            case "stream_created" | "stream_configured" | "consumer_configured":
                return "topology" if self._ready and process not in self._starting else None
            case "delivery_dropped":
                return None if entry.get("canceled") else "dropped"
            case "job_handed_back" | "callback_handed_back":
                return None if line.told_to_stop else "handed_back"
            case "attempt_failed":
                self._due[entry["job_id"], entry["stage"]].add(entry["attempt"] + 1)
                return _judge_error(entry["error"])
            case "job_failed":
                return _judge_error(entry["error"])
            case "attempt_started":
                return self._judge_start(entry)
        return None

    def _judge_start(self, entry: dict[str, Any]) -> str | None:
        job_id, stage, run, attempt = (entry[name] for name in ("job_id", "stage", "run", "attempt"))
        first = attempt == 1 and (job_id, run, stage) not in self._began
        self._began.add((job_id, run, stage))
        if attempt in self._due.pop((job_id, stage), ()) or first:
            return None
        self._handed_back[job_id, stage, attempt] -= 1
        return "repeated" if self._handed_back[job_id, stage, attempt] < 0 else None


def _judge_error(error: str) -> str | None:
    if "worker lost" in error:
        return "worker_lost"
    return None if any(part in error for part in ASKED_FOR) else "errors"


def _time(entry: dict[str, Any]) -> datetime:
    """Return the time of the entry, or the earliest time when it has none."""
    try:
        return datetime.fromisoformat(entry["timestamp"])
    except (KeyError, TypeError, ValueError):
        return datetime.min.replace(tzinfo=UTC)
