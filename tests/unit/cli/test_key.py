"""`heimdex key`: a key for its holder, and the gateway's setting for it."""

import hashlib
import json

import pytest

from heimdex_cli.main import call


def test_a_key_and_its_entry_are_printed_as_the_variables_that_take_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["key", "acme"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    name, _, key = first.partition("=")
    assert (name, len(key) > 40, key.isascii()) == ("HEIMDEX_API_KEY", True, True)
    assert second == f"HEIMDEX_API_KEYS=acme:{hashlib.sha256(key.encode()).hexdigest()}"


def test_no_two_keys_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    keys = set()
    for _ in range(20):
        assert call(["key", "acme", "--json"]) == 0
        keys.add(json.loads(capsys.readouterr().out)["key"])
    assert len(keys) == 20


@pytest.mark.parametrize("tenant", ["", "a b", "a:b", "a,b", "-a", "\u00e4", "a" * 65])
def test_a_name_that_the_gateway_would_refuse_is_refused_here(tenant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["key", "--", tenant]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "letters" in captured.err
