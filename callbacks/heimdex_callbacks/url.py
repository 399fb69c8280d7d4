"""Parses and validates a callback_url. Pure.

The request is made from the parts that were checked; the URL is not parsed a second time.
"""

import re
from typing import Final
from urllib.parse import urlsplit

import msgspec

MAX_LENGTH: Final = 2048
_PORTS: Final = {"http": 80, "https": 443}
#: The characters that RFC 3986 allows in a URL, except "#": it begins the fragment, which is never sent to a server.
_WRITTEN: Final = re.compile(r"[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%]+")


class UnusableUrl(ValueError):
    """The text is not a usable callback_url. The message completes a sentence that begins with the field's name."""


class Receiver(msgspec.Struct, frozen=True):
    """The receiver of a callback.

    host: in lower case, an IPv6 address without brackets; target: the path and the query.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The value of the Host header: host and port, the port only if it is not the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(text: object) -> Receiver:
    """Parse a callback_url from a request body, which may be any JSON value. Raises UnusableUrl."""
    if not isinstance(text, str):
        raise UnusableUrl("must be null or a URL such as https://shop.example/hooks/heimdex")
    if len(text) > MAX_LENGTH:
        raise UnusableUrl(f"must have at most {MAX_LENGTH} characters, not {len(text)}")
    scheme = text.partition(":")[0].lower()
    if scheme not in _PORTS or not text[len(scheme) :].startswith("://"):
        raise UnusableUrl("must begin with https:// or http://")
    if "#" in text:
        raise UnusableUrl("must not contain a fragment (the part after a '#'), which is never sent")
    if not _WRITTEN.fullmatch(text):
        raise UnusableUrl(
            "must contain only the characters of a URL: percent-encode others, and write the host in punycode"
        )
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        raise UnusableUrl("must have a host and, if it names a port, a port from 1 to 65535") from None
    if parts.username is not None or parts.password is not None:
        raise UnusableUrl("must not contain a user name or a password: callbacks are authenticated by their signature")
    if not host or "%" in host or port == 0:
        raise UnusableUrl("must have a host and, if it names a port, a port from 1 to 65535")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Receiver(scheme, host, port or _PORTS[scheme], target)
