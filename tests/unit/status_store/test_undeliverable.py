"""When a job without a sign of life counts as one that no worker holds."""

from heimdex_contracts.runtime.settings import Settings
from heimdex_status_store.undeliverable import SILENT_SECONDS


def test_a_worker_may_be_blocked_for_as_long_as_it_renews_its_leases() -> None:
    assert Settings().blocked_seconds < SILENT_SECONDS
