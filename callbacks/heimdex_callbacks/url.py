"""Reads a callback_url: what it must be like, and what of it goes into a request. Pure.

The parts that are checked are the parts that are used: nothing reads the text a second time.
"""

import re
from typing import Final
from urllib.parse import urlsplit

import msgspec

MAX_LENGTH: Final = 2048
_PORTS: Final = {"http": 80, "https": 443}
#: What RFC 3986 lets a URL be written with, but for "#", which begins what a server never gets.
_WRITTEN: Final = re.compile(r"[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%]+")


class UnusableUrl(ValueError):
    """Its text is the end of a sentence that begins with the field's name."""


class Receiver(msgspec.Struct, frozen=True):
    """Whom to call. host: in lower case, an IPv6 address without its brackets; target: the path with its query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(text: object) -> Receiver:
    """Raises UnusableUrl."""
    if not isinstance(text, str):
        raise UnusableUrl("must be null or a URL such as https://shop.example/hooks/heimdex")
    if len(text) > MAX_LENGTH:
        raise UnusableUrl(f"must be {MAX_LENGTH} characters long at most, and is {len(text)}")
    scheme = text.partition(":")[0].lower()
    if scheme not in _PORTS or not text[len(scheme) :].startswith("://"):
        raise UnusableUrl("must begin with https:// or http://")
    if "#" in text:
        raise UnusableUrl("must have no fragment (what follows a '#'): it would never be sent")
    if not _WRITTEN.fullmatch(text):
        raise UnusableUrl("must have only the characters of a URL: percent-encode others, and write a host as punycode")
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        raise UnusableUrl("must have a host, and a port from 1 to 65535 where it names one") from None
    if parts.username is not None or parts.password is not None:
        raise UnusableUrl("must carry no user name and no password: what is sent there is signed instead")
    if not host or "%" in host or port == 0:
        raise UnusableUrl("must have a host, and a port from 1 to 65535 where it names one")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Receiver(scheme, host, port or _PORTS[scheme], target)
