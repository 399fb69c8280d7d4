"""The HTTP bodies that are answered, apart from what goes over the wire inside."""

import msgspec

from heimdex_contracts.job_object import JobId


class JobAccepted(msgspec.Struct, frozen=True):
    """The answer to an accepted job."""

    job_id: JobId


class JobsAccepted(msgspec.Struct, frozen=True):
    """The answer to an accepted batch: the ids in the order of the jobs."""

    job_ids: list[JobId]


class JobsRetried(msgspec.Struct, frozen=True):
    """How many jobs run again, and whether there are more of them: then ask again."""

    retried: int
    more: bool
