"""The public package: what it exports, and that an import of it loads no client of a broker or a store."""

import subprocess
import sys

import heimdex


def test_it_exports_what_authors_need() -> None:
    assert set(heimdex.__all__) == {
        "CommandFailed",
        "Context",
        "PermanentError",
        "Pipeline",
        "RetryAfter",
        "Stage",
        "StageInterrupted",
    }
    assert all(hasattr(heimdex, name) for name in heimdex.__all__)


def test_its_import_loads_no_broker_and_no_storage() -> None:
    code = "import heimdex, sys; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    )
    assert "heimdex_contracts.pipelines" in loaded
    assert not {"nats", "obstore", "asyncpg", "structlog", "litestar"} & loaded
