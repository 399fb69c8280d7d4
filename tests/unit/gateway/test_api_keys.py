"""Which tenant a key belongs to."""

import hashlib

import pytest

from heimdex_contracts import messages
from heimdex_contracts.messages import DEFAULT_TENANT
from heimdex_gateway.middleware.api_keys import Keys
from heimdex_gateway.problem import Problem
from tests.support.histories import due


def entry(tenant: str, key: str) -> str:
    return f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}"


def test_each_key_of_a_tenant_identifies_the_tenant_and_itself() -> None:
    keys = Keys([entry("acme", "one"), entry("acme", "two").upper().replace("ACME", "acme"), entry("beta", "three")])
    owners = [keys.owner(f"Bearer {key}".encode()) for key in ("one", "two", "three")]
    assert [tenant for tenant, _ in owners] == ["acme", "acme", "beta"]
    assert len({digest for _, digest in owners}) == 3


@pytest.mark.parametrize("header", ["bearer one", "BEARER one", "Bearer  one", "Bearer one "])
def test_the_scheme_is_case_insensitive(header: str) -> None:
    assert Keys([entry("acme", "one")]).owner(header.encode())[0] == "acme"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer two",
        "Bearer One",
        "Bearer one two",
        "one",
        "Basic b25l",
        "Bearerone",
        "Token one",
        f"Bearer {hashlib.sha256(b'one').hexdigest()}",
        "Bearer \u00e9",
        "Bearer " + "x" * 100_000,
    ],
)
def test_anything_else_is_401_with_a_challenge_and_never_repeats_what_was_sent(header: str) -> None:
    with pytest.raises(Problem) as caught:
        Keys([entry("acme", "one")]).owner(header.encode())
    assert (caught.value.status, caught.value.headers) == (401, {"WWW-Authenticate": "Bearer"})
    assert "one two" not in caught.value.detail
    assert len(caught.value.detail) < 100


def test_a_job_of_the_default_tenants_key_has_the_same_size_as_one_without_keys() -> None:
    keys = Keys([entry("".join(["def", "ault"]), "one")])
    tenant, _ = keys.owner(b"Bearer one")
    assert tenant == DEFAULT_TENANT
    assert b"tenant" not in messages.encode(due(tenant=tenant))


def test_a_gateway_requires_keys_only_if_it_has_any() -> None:
    assert not Keys(())
    assert Keys([entry("acme", "one")])
