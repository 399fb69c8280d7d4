"""What the store says of a file, and how it is written down beside the bytes. Pure.

A file is two objects, on a disk as in S3: its bytes, and `about.json`, which describes them.

    <key>/about.json        {"name", "content_type", "bytes", "sha256", "created_at", "data": "<the other's name>"}
    <key>/<data>            the bytes

A file exists once its `about.json` does; that one is made last and never replaced. The description cannot be a part of
the bytes (other programs read them), of the name (a content type has up to 255 bytes) or of extended attributes (not
every file system and no S3 has them), and S3 takes its metadata before the hash of a stream is known. Because the two
layouts are the same, copying a folder into a bucket, or back, moves a store.
"""

from typing import Final

import msgspec

from heimdex_files.errors import Damaged

ABOUT: Final = "about.json"
#: The bytes that are read at a time.
CHUNK_BYTES: Final = 1024 * 1024


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A stored file. `bytes`: its size. `sha256`: in hexadecimal. `created_at`: seconds since 1970, by its writer."""

    name: str
    content_type: str
    bytes: int
    sha256: str
    created_at: float
    #: The name of the object, beside this description, that has the bytes.
    data: str


class Listed(msgspec.Struct, frozen=True):
    """A key in a listing. `changed_at`: seconds since 1970, by the store's clock; `bytes`: with the description.

    is_whole: False for what a killed process left on S3, and for objects that this package did not make.
    """

    key: str
    changed_at: float
    bytes: int
    is_whole: bool


def encode(stored: Stored) -> bytes:
    """Return the text of `about.json`."""
    return msgspec.json.encode(stored)


def decode(text: bytes, key: str) -> Stored:
    """Read `about.json`. Raises Damaged if it is not what `encode` returns."""
    try:
        stored = msgspec.json.decode(text, type=Stored)
    except msgspec.DecodeError:
        raise Damaged(f"The description of the file {key!r} cannot be read: restore it from a backup.") from None
    if not stored.data or "/" in stored.data or stored.data in {".", "..", ABOUT}:
        raise Damaged(f"The description of the file {key!r} names no object with its bytes: restore it from a backup.")
    return stored
