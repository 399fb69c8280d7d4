"""Whom a callback may reach: public addresses, and what HEIMDEX_CALLBACK_ALLOW adds. Pure.

The networks are those of IANA's registries of special-purpose addresses. Of IPv6 only what is given out as global
unicast is public, so that an IPv4 address wrapped in an IPv6 one (mapped, compatible, NAT64, 6to4, Teredo) is none.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from heimdex_contracts.errors import HeimdexError
from heimdex_contracts.runtime.callback_settings import is_host_name

Address = IPv4Address | IPv6Address

_NOT_PUBLIC_4: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by carriers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, and the metadata services of clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_PUBLIC_6: Final = IPv6Network("2000::/3")
_NOT_PUBLIC_6: Final = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)


class AddressForbidden(HeimdexError):
    """A receiver that must not be called; the text says why, as the end of a sentence about the URL."""


class AddressPolicy:
    """`entries`: host names, addresses and networks, as the setting has them."""

    def __init__(self, entries: Iterable[str] = ()) -> None:
        names: set[str] = set()
        networks: list[IPv4Network | IPv6Network] = []
        for entry in entries:
            try:
                networks.append(ip_network(entry))
            except ValueError:
                names.add(entry.lower())
        self._names = frozenset(names)
        self._networks = tuple(networks)

    def knows(self, host: str) -> bool:
        """Whether this very name is allowed, whatever address it has."""
        return host in self._names

    def check_host(self, host: str) -> Address | None:
        """What the host alone tells: its address where it is one, None for a name to look up. Raises Forbidden."""
        try:
            address = ip_address(host)
        except ValueError:
            if self.knows(host):
                return None
            if not is_host_name(host):
                raise AddressForbidden(
                    f"must name a host, or an address in its usual form, not {host[:60]!r}"
                ) from None
            if host == "localhost" or host.endswith(".localhost"):
                raise AddressForbidden("must not lead to this machine itself") from None
            return None
        if not self._may_be(address):
            raise AddressForbidden(f"must lead to a public address, not to {address}")
        return address

    def check_found(self, addresses: Iterable[Address]) -> None:
        """All that a name was found to have. Raises Forbidden, which does not tell what an inner name server knows."""
        if not all(map(self._may_be, addresses)):
            raise AddressForbidden("must lead to a public address, and its host has one that is not")

    def _may_be(self, address: Address) -> bool:
        return is_public(address) or any(address in network for network in self._networks)


def is_public(address: Address) -> bool:
    """Whether it is neither private, loopback, link-local, multicast nor reserved, nor another one in disguise."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)
