"""Which addresses a callback may reach."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heimdex_contracts.runtime.outbound.address_policy import AddressForbidden, AddressPolicy, is_public

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "198.17.255.255",
    "223.255.255.255",
    "2606:2800:220:1:248:1893:25c8:1946",
    "2001:4860:4860::8888",
    "2a00:1450:4001::1",
    "3ffe::1",
]
NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.0",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::a00:1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:808:808::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_may_be_called(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_private_addresses_may_not_be_called_in_any_notation(text: str) -> None:
    assert not is_public(ip_address(text))
    with pytest.raises(AddressForbidden, match="public address"):
        AddressPolicy().check_resolved([ip_address("8.8.8.8"), ip_address(text)])


@given(st.ip_addresses(v=4))
def test_no_ipv4_address_is_accepted_that_python_calls_private_or_special(address: IPv4Address) -> None:
    if is_public(address):
        assert address.is_global
        assert not any((address.is_multicast, address.is_reserved, address.is_loopback, address.is_link_local))


@given(st.ip_addresses(v=6))
def test_no_ipv6_address_is_accepted_that_is_private_special_or_embeds_another(
    address: IPv6Address,
) -> None:
    if is_public(address):
        assert address.is_global
        assert not any((address.is_multicast, address.is_reserved, address.is_loopback, address.is_link_local))
        assert address.ipv4_mapped is address.sixtofour is address.teredo is None


def test_an_allowance_covers_its_network_and_nothing_else() -> None:
    allowed = AddressPolicy(["10.1.0.0/16", "::1", "169.254.7.7"])
    for text in ("10.1.2.3", "::1", "169.254.7.7", "8.8.8.8"):
        allowed.check_resolved([ip_address(text)])
        assert allowed.check_host(text) == ip_address(text)
    for text in ("10.2.0.1", "127.0.0.1", "169.254.7.8", "::ffff:10.1.2.3"):
        with pytest.raises(AddressForbidden):
            allowed.check_resolved([ip_address(text)])
        with pytest.raises(AddressForbidden):
            allowed.check_host(text)
