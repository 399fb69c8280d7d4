"""A stand-in API for the tests of the command line."""

import threading
from collections.abc import Iterator

import pytest

from tests.support.standin_services import Gateway, serve


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A stand-in API without jobs, and the environment with its URL for `heimdex`."""
    server = serve(0)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HEIMDEX_URL", url)
    monkeypatch.setenv("STANDIN_WAITS", "1")
    monkeypatch.delenv("HEIMDEX_API_KEY", raising=False)
    for kept in (Gateway.jobs, Gateway.listened, Gateway.canceled, Gateway.asked):
        kept.clear()  # type: ignore[attr-defined]
    yield url
    server.shutdown()
    thread.join()
    server.server_close()
