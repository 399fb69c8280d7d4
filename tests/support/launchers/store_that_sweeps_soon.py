"""A status store that compares a row with the stream when it has not changed for a second, instead of a minute.

A job without a sign of life becomes a suspect after three leases, however short they are.
"""

from datetime import timedelta

from heimdex_status_store import undeliverable
from heimdex_status_store.main import main
from heimdex_status_store.reconciler import Reconciler
from tests.support.launchers.arguments import construct_with

undeliverable.SILENT_SECONDS = 0.0  # type: ignore[misc]
construct_with(Reconciler, rest=timedelta(seconds=1), check_seconds=0.5)
main()
