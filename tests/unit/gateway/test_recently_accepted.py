"""How many jobs a gateway keeps in memory after it has accepted them."""

from typing import Any, cast

import msgspec

from heimdex_contracts.messages import Due
from heimdex_gateway.jobs.recently_accepted import MOST, MOST_PARAMS_BYTES, RecentlyAccepted
from tests.support.histories import due

KIB = 1024


def keeper() -> RecentlyAccepted:
    nobody = cast("Any", None)  # nothing is published or read
    return RecentlyAccepted(nobody, nobody, nobody)


def kept(jobs: RecentlyAccepted) -> list[Due]:
    return [job for _, job in jobs._jobs]


def with_params(size: int, number: int) -> Due:
    return msgspec.structs.replace(due(), step=number, params=msgspec.Raw(b'"%s"' % (b"a" * (size - 2))))


async def test_the_newest_jobs_are_kept_up_to_a_number() -> None:
    jobs = keeper()
    jobs.add(due(step=number) for number in range(MOST + 5))
    assert [job.step for job in kept(jobs)] == list(range(5, MOST + 5))


async def test_the_newest_jobs_are_kept_up_to_the_size_of_their_params() -> None:
    jobs = keeper()
    fit = MOST_PARAMS_BYTES // (64 * KIB)
    for number in range(fit + 5):
        jobs.add([with_params(64 * KIB, number)])
    assert [job.step for job in kept(jobs)] == list(range(5, fit + 5))
    jobs.add(with_params(KIB, number) for number in range(64))
    assert len(kept(jobs)) == fit - 1 + 64
