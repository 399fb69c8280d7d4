"""The environment variables of `heimdex run` and `heimdex demo`."""

import pytest

from heimdex_cli.errors import Unusable
from heimdex_cli.settings import Addresses, addresses_for_demo, addresses_for_run, shutdown_grace_seconds


def test_run_uses_the_promised_ports_by_default() -> None:
    assert addresses_for_run({}) == Addresses("127.0.0.1", 8000, 4222, 8222)


def test_run_takes_its_ports_from_the_environment() -> None:
    environ = {
        "HEIMDEX_HOST": "0.0.0.0",
        "HEIMDEX_PORT": "9000",
        "HEIMDEX_EMBEDDED_NATS_PORT": "9001",
        "HEIMDEX_EMBEDDED_NATS_MONITOR_PORT": "0",
    }
    assert addresses_for_run(environ) == Addresses("0.0.0.0", 9000, 9001, None)


def test_demo_uses_free_ports_except_for_the_one_that_is_set() -> None:
    assert addresses_for_demo({}) == Addresses("127.0.0.1", 0, 0, None)
    assert addresses_for_demo({"HEIMDEX_PORT": "9000"}).port == 9000


@pytest.mark.parametrize("value", ["x", "-1", "65536", "80.5", "0", "٣"])
def test_an_unusable_port_is_refused_by_name(value: str) -> None:
    with pytest.raises(Unusable, match="HEIMDEX_PORT="):
        addresses_for_run({"HEIMDEX_PORT": value})


def test_two_uses_of_one_port_are_refused() -> None:
    with pytest.raises(Unusable, match="HEIMDEX_PORT and HEIMDEX_EMBEDDED_NATS_PORT are both 4222"):
        addresses_for_run({"HEIMDEX_PORT": "4222"})


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf"])
def test_an_unusable_grace_period_is_refused_by_name(value: str) -> None:
    with pytest.raises(Unusable, match="HEIMDEX_SHUTDOWN_GRACE_SECONDS="):
        shutdown_grace_seconds({"HEIMDEX_SHUTDOWN_GRACE_SECONDS": value})


@pytest.mark.parametrize(
    ("host", "url", "local_url"),
    [
        ("127.0.0.1", "http://localhost:80", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://localhost:80", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80", "http://[::1]:80"),
        ("10.0.0.7", "http://10.0.0.7:80", "http://10.0.0.7:80"),
    ],
)
def test_the_url_is_one_that_can_be_connected_to(host: str, url: str, local_url: str) -> None:
    addresses = Addresses(host=host, port=80)
    assert (addresses.url, addresses.local_url) == (url, local_url)
