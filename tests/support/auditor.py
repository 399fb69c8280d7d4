"""Looks through what services log for what must not happen where a test makes no fault.

On by default for every `System`. A test that makes a fault names what the fault may cause, and nothing else:
`@pytest.mark.allows("superseded")` for the whole test or module, `system.allow("superseded", job_id=...)` within one.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

#: What a test may allow, and what each kind says when it is found.
KINDS: Final = {
    "superseded": "the broker refused a hand-over, since the job had another successor",
    "dropped": "a delivery was dropped, since its job had gone on without it, and no caller had canceled it",
    "restored": "a job was published again from its row",
    "callbacks_restored": "a callback was published again from its row",
    "lost": "deliveries were gone from their stream while they were held",
    "given_up": "a message was published again, or recorded, since NATS would not deliver it any more",
    "behind": "a delivery was put back, since the stream's leader did not know of it in time",
    "left": "a delivery was left to come back after its ack wait",
    "handed_back": "a process that nobody told to stop handed work back",
    "stray": "a message that was in a job's way was removed",
    "unusable": "a message was set aside",
    "repeated": "a stage began again though its attempt before had neither failed nor been handed back",
    "errors": "an attempt failed for a reason that no test asked for",
    "worker_lost": "an attempt or a job ended as 'worker lost'",
    "isolated": "an attempt was suspected of ending its worker, and ran in a process of its own",
    "topology": "a stream or a consumer was made or changed after the start",
    "defect": "the code met what it does not expect",
    "not_json": "a line of a log is no JSON object",
}

#: What a test may name instead, where its fault is one of these: all the kinds that it may cause.
CAUSES: Final = {
    # What nats-server has not written yet is gone: the last acknowledgements, but no message, since the kernel has it.
    # The streams and consumers in memory are made again.
    "nats_killed": ("topology", "dropped", "repeated", "superseded", "lost"),
    # The same for one node of three, while the others keep the streams in memory too.
    "node_killed": ("dropped", "repeated", "superseded", "lost"),
    # Nothing is lost; what was acknowledged meanwhile comes again, and what was held is delivered to others.
    "nats_silent": ("dropped", "repeated", "superseded", "left"),
}

#: The events that are findings by themselves.
_EVENTS: Final = {
    "delivery_superseded": "superseded",
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
    "defect": "defect",
    **{f"{work}_broken": "defect" for work in ("delivery", "pruning", "reconnection", "request", "sweep", "topology")},
    "not_json": "not_json",
}
#: Those that need a look at what was logged before, or at what they say.
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
#: In the error of an attempt that a test told to fail: `fail_at_stage`, and the pipelines beside this file.
ASKED_FOR: Final = (
    "fail_at_stage asked this job to fail",
    "the script says",
    "this job always raises",
    "this job is tired",
    "the stage raised StopIteration",
)


class Line(NamedTuple):
    """What one process logged. told_to_stop: by the test, at any time."""

    process: str
    entry: dict[str, Any]
    told_to_stop: bool = False


class Finding(NamedTuple):
    """Something that no fault of the test explains."""

    kind: str
    line: Line


def describe(findings: list[Finding]) -> str:
    """Each kind with its number, and the first few of what was logged."""
    told = ["The logs tell of what no fault of this test explains (tests/support/auditor.py):"]
    for kind, number in Counter(finding.kind for finding in findings).items():
        told.append(f"{kind} ({number}): {KINDS[kind]}:")
        lines = [finding.line for finding in findings if finding.kind == kind]
        told += [f"    {line.process} logged {line.entry}" for line in lines[:3]]
    return "\n".join(told)


class _Allowance(NamedTuple):
    kinds: frozenset[str]
    fields: dict[str, Any]

    def covers(self, finding: Finding) -> bool:
        entry = finding.line.entry
        return finding.kind in self.kinds and all(entry.get(name) == value for name, value in self.fields.items())


def known(kinds: Iterable[str]) -> frozenset[str]:
    """These kinds, and those of these causes. Raises ValueError where one of them is neither."""
    wanted = frozenset(kind for name in kinds for kind in CAUSES.get(name, (name,)))
    if unknown := wanted - KINDS.keys():
        there_are = ", ".join((*KINDS, *CAUSES))
        raise ValueError(f"The auditor knows no {', '.join(sorted(unknown))}; there are {there_are}.")
    return wanted


class Auditor:
    """Of one system. It remembers what it has heard, so that `look` may be called again while the services go on."""

    def __init__(self) -> None:
        self._allowed: list[_Allowance] = []
        self._later: list[Line] = []
        self._starting: set[str] = set()
        self._ready: set[str] = set()
        #: Of each job, run and stage: that it has begun.
        self._began: set[tuple[str, int, str]] = set()
        #: Of each job and stage: the attempts that may begin, since the one before failed.
        self._due: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        #: Of each job, stage and attempt: how often it may begin again, since it was handed back.
        self._handed_back: Counter[tuple[str, str, int]] = Counter()

    def allow(self, *kinds: str, **fields: Any) -> None:
        """Pass over findings of these kinds, where fields are given only over those whose log entry has them.

        Raises ValueError for an unknown kind, or none.
        """
        if not kinds:
            raise ValueError("An allowance names what it allows.")
        self._allowed.append(_Allowance(known(kinds), fields))

    def forbid(self) -> None:
        """Take every allowance back."""
        self._allowed.clear()

    def check(self, lines: Iterable[Line], until: datetime | None = None) -> None:
        """As `look`, which must find nothing: else AssertionError says what."""
        if found := self.look(lines, until):
            raise AssertionError(describe(found))

    def look(self, lines: Iterable[Line], until: datetime | None = None) -> list[Finding]:
        """What is found in these lines, which follow those of the calls before.

        until: keep what was logged from then on for the next call. Only so can the lines of several processes that
        still run be put in order.
        """
        new = [line for line in lines if line.entry.get("event") in _JUDGED | _EVENTS.keys()]
        for line in new:
            if line.entry["event"] == "job_handed_back":
                # Whatever its time: a worker logs it when it has published it, and another may have begun by then.
                self._handed_back[line.entry["job_id"], line.entry["stage"], line.entry["attempt"]] += 1
        heard = sorted((*self._later, *new), key=lambda line: _time(line.entry))
        self._later = [line for line in heard if until is not None and _time(line.entry) >= until]
        found = [
            Finding(kind, line)
            for line in heard[: len(heard) - len(self._later)]
            if (kind := _EVENTS.get(line.entry["event"]) or self._judge(line)) is not None
        ]
        return [finding for finding in found if not any(allowance.covers(finding) for allowance in self._allowed)]

    def _judge(self, line: Line) -> str | None:
        entry, process = line.entry, line.process
        match entry["event"]:
            case "starting":
                # Those that start together make the streams and consumers together.
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
    return None if any(asked in error for asked in ASKED_FOR) else "errors"


def _time(entry: dict[str, Any]) -> datetime:
    """When it was logged; what has no time comes first."""
    try:
        return datetime.fromisoformat(entry["timestamp"])
    except (KeyError, TypeError, ValueError):
        return datetime.min.replace(tzinfo=UTC)
