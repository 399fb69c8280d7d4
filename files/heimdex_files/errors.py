"""The errors of the file store. The text says what is wrong and what to do.

FileStoreError
├── NotFound          The store answered, and the file is not there. Only then may a job be sent back to make it again.
│   └── Damaged       The file is there, but parts of its bytes are not.
├── AlreadyThere      A file is never overwritten: this key has one.
├── TooLarge          The source has more bytes than the caller allowed.
├── WrongSize         The source has not as many bytes as it announced.
├── Abandoned         The caller gave up. Nothing is kept.
└── Unavailable       The store could not be asked: the state of the file is unknown, the same call may succeed later.
    ├── Full          The store has no room.
    └── ForeignStore  The store belongs to another installation, or nobody knows to which: use and remove nothing.
InvalidName           Also a ValueError: text that must not become a part of a key.
"""

from heimdex_contracts.errors import HeimdexError


class FileStoreError(HeimdexError):
    """Base class of the file store's errors."""


class NotFound(FileStoreError):
    """The store has no file at this key. Never raised for a store that could not be asked."""


class Damaged(NotFound):
    """The stored bytes of a file are fewer or more than were written, or its description cannot be read."""


class AlreadyThere(FileStoreError):
    """The key has a file already, which stays as it is."""


class TooLarge(FileStoreError):
    """The source has more bytes than the limit. Nothing is kept of it."""


class WrongSize(FileStoreError):
    """The source ended before, or went on after, the size that was announced. Nothing is kept of it."""


class Abandoned(FileStoreError):
    """The caller gave up while the file was stored. Nothing is kept of it."""


class Unavailable(FileStoreError):
    """The store is absent, refuses access, does not answer in time or failed. The outcome is unknown."""


class Full(Unavailable):
    """The disk, the quota or the bucket has no room left. Nothing is kept of the file."""


class ForeignStore(Unavailable):
    """The store has the marker of another installation, or files and no marker."""


class InvalidName(HeimdexError, ValueError):
    """A name or a key that must not be used. The text gives the rule that it breaks."""
