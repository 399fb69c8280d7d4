"""Determines which receivers a callback may reach: public addresses, and those that HEIMDEX_CALLBACK_ALLOW adds. Pure.

The networks are those of IANA's special-purpose address registries. Of IPv6, only allocated global unicast counts as
public, so an IPv4 address embedded in an IPv6 address (mapped, compatible, NAT64, 6to4, Teredo) does not.
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
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, and cloud metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
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
        "2001::/23",  # protocol assignments, including Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)


class AddressForbidden(HeimdexError):
    """A receiver must not be called. The text gives the reason and completes a sentence whose subject is the URL."""


class AddressPolicy:
    """Decides which hosts and addresses may be called.

    entries: the host names, addresses and networks of HEIMDEX_CALLBACK_ALLOW.
    """

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
        """Return whether the setting allows this host name, whatever its addresses."""
        return host in self._names

    def check_host(self, host: str) -> Address | None:
        """Check a host before it is resolved.

        Returns the address if the host is one, None for a name that must be resolved. Raises AddressForbidden for an
        address that must not be called, for `localhost`, and for text that is neither a host name nor an address.
        """
        try:
            address = ip_address(host)
        except ValueError:
            if self.knows(host):
                return None
            if not is_host_name(host):
                raise AddressForbidden(
                    f"must name a host, or an IP address in its standard notation, not {host[:60]!r}"
                ) from None
            if host == "localhost" or host.endswith(".localhost"):
                raise AddressForbidden("must not lead to this machine") from None
            return None
        if not self._is_allowed(address):
            raise AddressForbidden(f"must lead to a public address, not to {address}")
        return address

    def check_resolved(self, addresses: Iterable[Address]) -> None:
        """Check all addresses to which a name was resolved.

        Raises AddressForbidden when one of them must not be called. The text does not contain that address, because it
        could reveal what an internal name server knows.
        """
        if not all(map(self._is_allowed, addresses)):
            raise AddressForbidden("must lead to a public address, but its host has one that is not public")

    def _is_allowed(self, address: Address) -> bool:
        return is_public(address) or any(address in network for network in self._networks)


def is_public(address: Address) -> bool:
    """Return whether the address is public: not private, loopback, link-local, multicast, reserved or embedded IPv4."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)
