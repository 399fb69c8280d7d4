"""Which callback_urls are accepted at submission, and the errors for all others."""

import asyncio
import json
from ipaddress import ip_address
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heimdex_callbacks.resolver import Resolver, Unresolved
from heimdex_callbacks.url import Receiver, UnusableUrl, parse_url
from heimdex_callbacks.validation import CallbackUrlRefused, CallbackValidation
from heimdex_contracts import pipelines
from heimdex_contracts.runtime.outbound.address_policy import Address, AddressPolicy
from heimdex_gateway.errors import on_error
from heimdex_gateway.schemas import job_request

KNOWN = pipelines.load(["heimdex_contracts.mock_process"])

GOOD = [
    ("https://shop.example", Receiver("https", "shop.example", 443, "/"), "shop.example"),
    ("HTTPS://Shop.Example./a/b?c=d", Receiver("https", "shop.example", 443, "/a/b?c=d"), "shop.example"),
    ("http://shop.example:8080/%20?x", Receiver("http", "shop.example", 8080, "/%20?x"), "shop.example:8080"),
    ("http://shop.example:80?a=http://b/@c", Receiver("http", "shop.example", 80, "/?a=http://b/@c"), "shop.example"),
    ("https://93.184.216.34/x", Receiver("https", "93.184.216.34", 443, "/x"), "93.184.216.34"),
    (
        "https://[2606:2800:220:1::1]:8443",
        Receiver("https", "2606:2800:220:1::1", 8443, "/"),
        "[2606:2800:220:1::1]:8443",
    ),
    ("https://xn--bcher-kva.example/", Receiver("https", "xn--bcher-kva.example", 443, "/"), "xn--bcher-kva.example"),
    ("https://" + "a." * 100 + "example/" + "x" * 1830, None, ""),
]
BAD: list[tuple[Any, str]] = [
    (17, "must be null or a URL"),
    ([], "must be null or a URL"),
    (True, "must be null or a URL"),
    ({"url": "https://shop.example"}, "must be null or a URL"),
    ("", "https:// or http://"),
    ("file:///etc/passwd", "https:// or http://"),
    ("file://shop.example/x", "https:// or http://"),
    ("gopher://shop.example/", "https:// or http://"),
    ("javascript:alert(1)", "https:// or http://"),
    ("//shop.example/", "https:// or http://"),
    ("shop.example/hooks", "https:// or http://"),
    ("https:/shop.example", "https:// or http://"),
    (" https://shop.example", "https:// or http://"),
    ("https://", "must have a host"),
    ("https:///path", "must have a host"),
    ("https://:443/", "must have a host"),
    ("https://?x", "must have a host"),
    ("https://./", "must have a host"),
    ("https://shop.example:0/", "port from 1 to 65535"),
    ("https://shop.example:65536/", "port from 1 to 65535"),
    ("https://shop.example:http/", "port from 1 to 65535"),
    ("https://shop.example:-1/", "port from 1 to 65535"),
    ("https://[::1", "must have a host"),
    ("https://[fe80::1%25eth0]/", "must have a host"),
    ("https://user:secret@shop.example/", "must not contain a user name or a password"),
    ("https://user@shop.example/", "must not contain a user name or a password"),
    ("https://@shop.example/", "must not contain a user name or a password"),
    ("https://:@shop.example/", "must not contain a user name or a password"),
    ("https://shop.example/#part", "fragment"),
    ("https://shop.example/a b", "characters of a URL"),
    ("https://shop.example/\r\nX-Evil: 1", "characters of a URL"),
    ("https://shop.example/\x00", "characters of a URL"),
    ("https://shop.example\\@127.0.0.1/", "characters of a URL"),
    ("https://bücher.example/", "characters of a URL"),
    ("https://shop.example/ü", "characters of a URL"),
    ("https://shop.example/" + "x" * 2048, "must have at most 2048 characters, not 2069"),
    # Nobody's host but by the numbers: what the C library takes for an address.
    ("http://2130706433/", "must name a host"),
    ("http://0x7f000001/", "must name a host"),
    ("http://0x7f.1/", "must name a host"),
    ("http://127.1/", "must name a host"),
    ("http://0177.0.0.1/", "must name a host"),
    ("http://127.0.0.1.:80/", "public address"),
    ("http://shop..example/", "must name a host"),
    ("http://-shop.example/", "must name a host"),
    ("http://shop.example!/", "must name a host"),
    ("http://" + "a" * 64 + ".example/", "must name a host"),
    # Where nobody may be sent.
    ("http://localhost/", "this machine"),
    ("http://LOCALHOST.:8000/", "this machine"),
    ("http://a.localhost/", "this machine"),
    ("http://127.0.0.1/", "public address"),
    ("http://169.254.169.254/latest/meta-data/", "public address"),
    ("http://10.0.0.1/", "public address"),
    ("http://[::1]/", "public address"),
    ("http://[::ffff:127.0.0.1]/", "public address"),
]


class KnownNames(Resolver):
    """Resolves these names without a network. A name with None never resolves."""

    def __init__(self, **addresses: list[str] | None) -> None:
        self.known = addresses
        self.asked: list[str] = []

    async def addresses(self, host: str, port: int) -> list[Address]:
        self.asked.append(host)
        if host not in self.known:
            raise Unresolved("no such name")
        known = self.known[host]
        if known is None:
            await asyncio.sleep(3600)
        return [ip_address(text) for text in known or ()]


def acceptance(*allow: str, **names: list[str] | None) -> CallbackValidation:
    return CallbackValidation(True, AddressPolicy(allow), KnownNames(**names))


def status_and_field(error: CallbackUrlRefused) -> tuple[int, str]:
    """Return the status and the field of the response to this error."""
    answer = on_error(cast("Any", None), error)
    return answer.status_code, json.loads(answer.content)["field"]


def refused(value: Any, *allow: str) -> CallbackUrlRefused:
    with pytest.raises(CallbackUrlRefused) as caught:
        acceptance(*allow).read(value, "callback_url")
    return caught.value


@pytest.mark.parametrize(("text", "expected", "authority"), GOOD)
def test_a_public_http_url_is_accepted_unchanged(text: str, expected: Receiver | None, authority: str) -> None:
    assert acceptance().read(text, "callback_url") == text
    if expected is not None:
        assert parse_url(text) == expected
        assert parse_url(text).authority == authority


@pytest.mark.parametrize(("value", "why"), BAD)
def test_any_other_url_is_a_422_with_a_sentence_that_names_the_field(value: Any, why: str) -> None:
    problem = refused(value)
    assert problem.field == "callback_url"
    assert status_and_field(problem) == (422, "callback_url")
    assert str(problem).startswith("The field 'callback_url' must ")
    assert why in str(problem)
    assert str(problem).endswith(".")
    assert "\n" not in str(problem)
    assert len(str(problem)) < 250


@given(st.text() | st.text(alphabet="htps:/@[]%.#?\\0127ax").map(lambda rest: f"http://{rest}"))
def test_any_text_is_accepted_or_refused_with_a_sentence(text: str) -> None:
    try:
        receiver = parse_url(text)
    except UnusableUrl:
        return
    assert receiver.scheme in {"http", "https"}
    assert receiver.host
    assert 1 <= receiver.port <= 65535
    assert receiver.target.startswith("/")
    assert receiver.target.isascii()
    assert receiver.target.isprintable()


def test_without_a_secret_a_callback_url_is_refused_with_how_to_enable_callbacks() -> None:
    disabled = CallbackValidation(False, AddressPolicy(), KnownNames())
    with pytest.raises(CallbackUrlRefused) as caught:
        job_request.job(b'{"type": "mock_process", "callback_url": "https://shop.example"}', KNOWN, disabled)
    assert status_and_field(caught.value) == (422, "callback_url")
    assert "not enabled" in str(caught.value)
    assert "HEIMDEX_CALLBACK_SECRET" in str(caught.value)
    assert job_request.job(b'{"type": "mock_process", "callback_url": null}', KNOWN, disabled).callback_url is None


def test_an_error_of_one_job_of_a_batch_names_that_job() -> None:
    body = b'{"jobs": [{"type": "mock_process"}, {"type": "mock_process", "callback_url": "file:///x"}]}'
    with pytest.raises(CallbackUrlRefused) as caught:
        job_request.jobs(body, KNOWN, acceptance())
    assert caught.value.field == "jobs[1].callback_url"


@pytest.mark.parametrize(
    ("url", "allow"),
    [
        ("http://127.0.0.1:9/", "127.0.0.0/8"),
        ("http://127.0.0.1:9/", "127.0.0.1"),
        ("http://localhost:9/", "localhost"),
        ("http://LocalHost:9/", "LOCALHOST"),
        ("http://[::1]/", "::1"),
        ("http://[fd00::7]/", "fd00::/8"),
    ],
)
def test_a_url_that_the_operator_allows_is_accepted(url: str, allow: str) -> None:
    assert acceptance("192.168.7.0/24", allow).read(url, "callback_url") == url


def test_an_allowance_covers_only_the_receivers_that_it_names() -> None:
    assert "public address" in str(refused("http://10.0.0.1/", "127.0.0.0/8", "localhost"))
    assert "this machine" in str(refused("http://localhost/", "127.0.0.0/8"))
    assert "public address" in str(refused("http://[::ffff:127.0.0.1]/", "127.0.0.0/8"))
    assert "public address" in str(refused("http://127.0.0.1/", "localhost"))


async def test_a_name_that_resolves_to_a_forbidden_address_is_refused_at_submission() -> None:
    names: dict[str, list[str] | None] = {"in.corp": ["93.184.216.34", "10.1.2.3"], "out.example": ["93.184.216.34"]}
    accepted = acceptance(**names)
    await accepted.look_up([("callback_url", "https://out.example/")])
    with pytest.raises(CallbackUrlRefused) as caught:
        await accepted.look_up(
            [("jobs[0].callback_url", "https://out.example/"), ("jobs[1].callback_url", "https://in.corp/")]
        )
    assert caught.value.field == "jobs[1].callback_url"
    assert "public address" in str(caught.value)
    assert "10.1.2.3" not in str(caught.value), "what an inner name server knows is nobody's business"
    await acceptance("in.corp", **names).look_up([("callback_url", "https://in.corp/")])
    await acceptance("10.0.0.0/8", **names).look_up([("callback_url", "https://in.corp/")])


async def test_a_name_that_does_not_resolve_now_or_resolves_slowly_is_accepted() -> None:
    names = KnownNames(**{"slow.example": None})
    validation = CallbackValidation(True, AddressPolicy(), names, look_up_seconds=0.05)
    await validation.look_up([("a", "https://slow.example/"), ("b", "https://none.example/")])


async def test_each_host_of_a_batch_is_resolved_once() -> None:
    names = KnownNames(**{"out.example": ["93.184.216.34"]})
    await CallbackValidation(True, AddressPolicy(), names).look_up(
        (f"jobs[{n}]", f"https://out.example/{n}") for n in range(1000)
    )
    assert names.asked == ["out.example"]


async def test_a_name_from_the_hosts_file_is_resolved() -> None:
    resolver = Resolver(1)
    try:
        assert {str(address) for address in await resolver.addresses("localhost", 80)} <= {"127.0.0.1", "::1"}
        with pytest.raises(Unresolved, match="no address"):
            await resolver.addresses("a" * 64 + ".invalid", 80)
    finally:
        resolver.close()
