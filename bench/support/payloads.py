"""The messages of one job as our services write them, with a place for the job's id: what the floor sends."""

from dataclasses import dataclass
from typing import Any

from heimdex_contracts import messages, tracing
from heimdex_contracts.messages import AnyJobMessage, Completed, Due, Follows, StageRun
from heimdex_contracts.mock_process import PIPELINES

_ID = "00000000-0000-7000-8000-000000000000"
_ACK = "$JS.ACK.HEIMDEX_JOBS.{stage}.1.1234567.1234567.1760000000000000000.123"


@dataclass(frozen=True)
class Template:
    """One message. `payload` is `before` + the job's id + `after`; `stage`: None for the last, completed."""

    step: int
    stage: str | None
    token: str
    before: bytes
    after: bytes
    message: AnyJobMessage

    def payload(self, job_id: str) -> bytes:
        """Its bytes for this job."""
        return self.before + job_id.encode() + self.after

    def headers(self, job_id: str, expected: int) -> dict[str, str]:
        """The four headers that every message of ours carries: its id, the fence, the trace."""
        return {
            "Nats-Msg-Id": f"{job_id}.{self.step}.{self.token}",
            "Nats-Expected-Last-Subject-Sequence": str(expected),
            "Nats-Expected-Last-Subject-Sequence-Subject": f"heimdex.jobs.*.{job_id}",
            "traceparent": self.message.trace or "",
        }


def templates() -> list[Template]:
    """In the order of their steps: due at each stage, then completed."""
    pipeline = PIPELINES[0]
    at = messages.now()
    common: dict[str, Any] = {
        "job_id": _ID,
        "type": pipeline.type,
        "created_at": at,
        "at": at,
        "trace": tracing.start(),
    }
    first = Due(**common, step=0, stage=pipeline.first_stage, reason="submitted")
    found = [_template(first)]
    finished: tuple[StageRun, ...] = ()
    for step, stage in enumerate(pipeline.stage_names, start=1):
        finished = (*finished, StageRun(stage, 1, at, at, 0.001234))
        follows = Follows(1234567, _ACK.format(stage=stage))
        rest: dict[str, Any] = {**common, "step": step, "finished": finished, "follows": follows}
        following = pipeline.stage_after(stage)
        if following is None:
            result = {"stages_completed": list(pipeline.stage_names), "total_duration_seconds": 0.012345}
            found.append(_template(Completed(**rest, progress=100, stage=stage, result=result)))
        else:
            progress = pipeline.progress(following)
            found.append(_template(Due(**rest, progress=progress, stage=following, reason="handed_over", started=True)))
    return found


def _template(message: AnyJobMessage) -> Template:
    before, _, after = messages.encode(message).partition(_ID.encode())
    stage = message.stage if isinstance(message, Due) else None
    return Template(message.step, stage, messages.token(message), before, after, message)
