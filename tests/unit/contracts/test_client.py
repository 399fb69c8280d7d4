"""Header blocks and the metadata of deliveries on the wire."""

import pytest

from heimdex_contracts.runtime.jetstream.client import header_block, headers_of, status_of
from heimdex_contracts.runtime.jetstream.message import Metadata, metadata_of


def test_headers_are_decoded_as_they_were_sent() -> None:
    headers = {"Nats-Msg-Id": "a.0.extracting", "traceparent": "00-ab-cd-01", "Odd": "naïve: ☃", "Empty": ""}
    block = header_block(headers)
    assert block.startswith(b"NATS/1.0\r\n")
    assert block.endswith(b"\r\n\r\n")
    assert headers_of(block) == headers
    assert status_of(block) == ("", "")


@pytest.mark.parametrize("value", ["two\nlines", "two\r\nlines", "a\rb", "\n"])
def test_a_header_that_is_not_a_single_line_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="single line"):
        header_block({"Name": value})


def test_the_status_line_is_distinguished_from_the_headers_after_it() -> None:
    block = b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 7\r\nNats-Pending-Bytes: 0\r\n\r\n"
    assert status_of(block) == ("408", "Request Timeout")
    assert headers_of(block)["Nats-Pending-Messages"] == "7"
    assert status_of(b"NATS/1.0 503\r\n\r\n") == ("503", "")


@pytest.mark.parametrize("block", [b"", b"rubbish", b"\xff\xfe\r\n:\r\nno colon\r\n\r\n", b"NATS/1.0"])
def test_a_malformed_header_block_has_no_status_and_no_headers(block: bytes) -> None:
    assert status_of(block) == ("", "")
    assert set(headers_of(block)) <= {""}


def test_a_deliverys_metadata_are_read_from_its_reply_subject() -> None:
    expected = Metadata("HEIMDEX_JOBS", 17, 1763999999000000001, 2)
    assert metadata_of("$JS.ACK.HEIMDEX_JOBS.extracting.2.17.5.1763999999000000001.3") == expected
    assert metadata_of("$JS.ACK.domain.account.HEIMDEX_JOBS.extracting.2.17.5.1763999999000000001.3.token") == expected


@pytest.mark.parametrize(
    "reply",
    ["", "_INBOX.abc", "$JS.ACK.HEIMDEX_JOBS.extracting", "$JS.ACK.a.b.c.d.e.f.g", "$JS.ACK.a.b.c.d.S.e.x.y.z.0.0"],
)
def test_any_other_subject_has_no_metadata(reply: str) -> None:
    assert metadata_of(reply) is None
