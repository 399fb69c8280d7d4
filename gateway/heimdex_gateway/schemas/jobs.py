"""The response bodies of the routes that submit and retry jobs."""

import msgspec

from heimdex_contracts.job_object import JobId


class JobAccepted(msgspec.Struct, frozen=True):
    """The response to an accepted job."""

    job_id: JobId


class JobsAccepted(msgspec.Struct, frozen=True):
    """The response to an accepted batch. The ids are in the order of the jobs."""

    job_ids: list[JobId]


class JobsRetried(msgspec.Struct, frozen=True):
    """The response to a retry of many jobs: how many run again. more: further jobs match, so repeat the request."""

    retried: int
    more: bool
