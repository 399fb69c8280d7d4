"""The messages of one job as Heimdex's services write them, with a placeholder for the job's id; sent by the floor."""

from dataclasses import dataclass
from typing import Any

import msgspec

from heimdex_contracts import messages, routes, tracing
from heimdex_contracts.messages import AnyJobMessage, Completed, Due, Follows, StageRun
from heimdex_contracts.mock_process import PIPELINES

_ID = "00000000-0000-7000-8000-000000000000"
_ACK = "$JS.ACK.HEIMDEX_JOBS.{stage}.1.1234567.1234567.1760000000000000000.123"


@dataclass(frozen=True)
class Template:
    """One message of a job. Its payload is `before`, the job's id and `after`.

    stage: the stage at which the job is due; None for the last message, `completed`.
    """

    step: int
    stage: str | None
    token: str
    before: bytes
    after: bytes
    message: AnyJobMessage

    def payload(self, job_id: str) -> bytes:
        """Return the payload of the message for this job."""
        return self.before + job_id.encode() + self.after

    def headers(self, job_id: str, expected: int) -> dict[str, str]:
        """Return the four headers of every job message: the message id, the two of the successor fence, the trace.

        expected: the stream sequence of the job's newest message, 0 for none.
        """
        return {
            "Nats-Msg-Id": f"{job_id}.{self.step}.{self.token}",
            "Nats-Expected-Last-Subject-Sequence": str(expected),
            "Nats-Expected-Last-Subject-Sequence-Subject": f"heimdex.jobs.*.{job_id}",
            "traceparent": self.message.trace or "",
        }


def templates() -> list[Template]:
    """Return the messages of a job in the order of their steps: due at each stage, then completed."""
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
    job_messages = [_template(first)]
    finished: tuple[StageRun, ...] = ()
    for step, stage in enumerate(pipeline.stage_names, start=1):
        finished = (*finished, StageRun(stage, 1, at, at, 0.001234))
        follows = Follows(1234567, _ACK.format(stage=stage))
        rest: dict[str, Any] = {**common, "step": step, "finished": finished, "follows": follows}
        following = routes.stage_after(pipeline.stage_names, stage)
        if following is None:
            fields = {"stages_completed": pipeline.stage_names, "total_duration_seconds": 0.012345, "output": None}
            result = msgspec.Raw(msgspec.json.encode(fields))
            job_messages.append(_template(Completed(**rest, progress=100, stage=stage, result=result)))
        else:
            progress = routes.progress_along(pipeline.stage_names, pipeline, following)
            due = Due(**rest, progress=progress, stage=following, reason="handed_over", started=True)
            job_messages.append(_template(due))
    return job_messages


def _template(message: AnyJobMessage) -> Template:
    before, _, after = messages.encode(message).partition(_ID.encode())
    stage = message.stage if isinstance(message, Due) else None
    return Template(message.step, stage, messages.token(message), before, after, message)
