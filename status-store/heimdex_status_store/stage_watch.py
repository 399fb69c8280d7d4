"""Reports the stages at which jobs wait although no worker asks for them. Such a job waits for ever, without an error.

JetStream knows the queue of each stage: its jobs, and the standing requests of its workers. A worker that holds as many
jobs as it may has no request, so it is asked whether it lives.
"""

import asyncio
from typing import Any, Final

import msgspec
import nats.errors

from heimdex_contracts import subjects
from heimdex_contracts.errors import BrokerUnavailable
from heimdex_contracts.pipelines import Pipelines
from heimdex_contracts.runtime.jetstream.connection import Broker, JetStreamError
from heimdex_contracts.runtime.logs import Logger

LOOK_SECONDS: Final = 5.0
#: The number of consecutive checks that must find a stage without a worker: a worker that is replaced is away shortly.
LOOKS: Final = 3
#: The time that a worker has to answer.
ANSWER_SECONDS: Final = 1.0
#: The time that NATS has to answer. A cluster first waits for the servers that lead the consumers.
LIST_SECONDS: Final = 6.0


class _Delivered(msgspec.Struct, frozen=True):
    consumer_seq: int = 0


class _Config(msgspec.Struct, frozen=True):
    filter_subject: str = ""


class _Queue(msgspec.Struct, frozen=True):
    """The part of a consumer's info that this module reads."""

    name: str
    config: _Config = _Config()
    delivered: _Delivered = _Delivered()
    num_ack_pending: int = 0
    num_pending: int = 0
    num_waiting: int = 0

    @property
    def jobs(self) -> int:
        """The number of jobs at the stage: those not delivered yet, running, in back-off, or to be redelivered."""
        return self.num_pending + self.num_ack_pending


class StageWatch:
    """Finds the stages without a worker, and the jobs at stages that no pipeline declares. Logs each change once."""

    def __init__(self, broker: Broker, pipelines: Pipelines, log: Logger, look_seconds: float = LOOK_SECONDS) -> None:
        self._broker = broker
        self._log = log
        self._look_seconds = look_seconds
        #: By queue: the stages whose workers take its jobs. A queue that is not a key belongs to no declared stage.
        self._served_by: dict[str, set[str]] = {name: {name} for name in pipelines.queue_names}
        for stage in pipelines.stage_names:
            for name in pipelines.former_names(stage):
                self._served_by[name].add(stage)
        #: By queue: the number of deliveries until the last check.
        self._delivered: dict[str, int] = {}
        #: By queue with jobs and without a worker: the number of consecutive checks that have found it so.
        self._abandoned: dict[str, int] = {}
        self._reported: set[str] = set()

    def without_workers(self) -> list[str]:
        """Return the declared stages at which jobs wait although no worker asks for them, sorted."""
        return sorted(self._reported & self._served_by.keys())

    def undeclared(self) -> list[str]:
        """Return the stages that no pipeline declares, at which jobs wait although no worker asks for them, sorted."""
        return sorted(self._reported - self._served_by.keys())

    async def run(self) -> None:
        """Check until cancelled. What cannot be found out in an outage stays as it was."""
        while True:
            try:
                await self.look()
            except (BrokerUnavailable, JetStreamError, msgspec.MsgspecError) as error:
                self._log.debug("stages_not_checked", reason=str(error))
            except Exception:
                self._log.exception("defect", message="the check of the stages failed with a bug; it will be repeated")
            await asyncio.sleep(self._look_seconds)

    async def look(self) -> None:
        """Check all queues once. Raises BrokerUnavailable, JetStreamError or MsgspecError."""
        queues, unknown = await self._queues()
        for name in self._abandoned.keys() - queues.keys() - unknown:
            del self._abandoned[name]  # the consumer was removed
        for queue in queues.values():
            if await self._is_abandoned(queue):
                self._abandoned[queue.name] = self._abandoned.get(queue.name, 0) + 1
            else:
                self._abandoned.pop(queue.name, None)
            self._delivered[queue.name] = queue.delivered.consumer_seq
        reported = {name for name, checks in self._abandoned.items() if checks >= LOOKS}
        for name in sorted(reported - self._reported):
            self._report(queues[name])
        for name in sorted(self._reported - reported):
            event = f"{self._event(name)}_over"
            self._log.info(event, message="no job waits at this stage without a worker any more", stage=name)
        self._reported = reported

    def _event(self, name: str) -> str:
        return "stage_without_worker" if name in self._served_by else "stage_undeclared"

    def _report(self, queue: _Queue) -> None:
        if queue.name in self._served_by:
            stages = " or ".join(sorted(self._served_by[queue.name]))
            message = f"jobs wait at this stage, and no worker asks for them: start a worker of {stages}"
        else:
            message = (
                "jobs wait at a stage that no pipeline declares: start a worker that declares it, name it in "
                "`formerly` of the stage that replaces it, or cancel the jobs"
            )
        self._log.warning(self._event(queue.name), message=message, stage=queue.name, jobs=queue.jobs)

    async def _queues(self) -> tuple[dict[str, _Queue], set[str]]:
        """Return the queues of all stages by name, also of those that no pipeline of this process declares.

        The second value has the names of the consumers that did not answer, as while a cluster elects their leader.
        """
        consumers: list[dict[str, Any]] = []
        unknown: set[str] = set()
        while True:
            body = {"offset": len(consumers) + len(unknown)}
            page = await self._broker.api(f"CONSUMER.LIST.{subjects.JOBS}", body, LIST_SECONDS)
            consumers += page.get("consumers") or ()
            unknown.update(page.get("missing") or ())
            if not page.get("consumers") or len(consumers) + len(unknown) >= page["total"]:
                break
        # Others, such as an operator's, are not named after what they filter. No process pulls from LATER.
        queues = {
            queue.name: queue
            for queue in msgspec.convert(consumers, list[_Queue])
            if queue.config.filter_subject == subjects.stage_filter(queue.name)
            and queue.name not in subjects.RESERVED_TOKENS
        }
        return queues, unknown

    async def _is_abandoned(self, queue: _Queue) -> bool:
        if not queue.jobs or queue.num_waiting:
            return False
        if queue.delivered.consumer_seq != self._delivered.get(queue.name, queue.delivered.consumer_seq):
            return False  # a worker has taken jobs since the last check
        lives = [await self._lives(stage) for stage in sorted(self._served_by.get(queue.name, {queue.name}))]
        if True in lives:
            return False
        # Without an answer, a worker may be too busy to give one; then it holds jobs.
        return None not in lives or not queue.num_ack_pending

    async def _lives(self, stage: str) -> bool | None:
        """Return whether a worker of this stage is connected to NATS; None if it does not answer.

        Raises BrokerUnavailable.
        """
        try:
            # Not `Broker.request`: it takes the lack of a responder for a missing stream.
            await self._broker.nc.direct_request(f"$SRV.PING.heimdex-{stage}", b"", ANSWER_SECONDS)
        except nats.errors.NoRespondersError:
            return False
        except TimeoutError:
            return None
        except (nats.errors.Error, ConnectionError) as error:
            raise BrokerUnavailable(str(error)) from error
        return True
