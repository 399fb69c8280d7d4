"""Describes an exception in a few words that are bounded and can always be stored. Nothing here raises. Pure.

An exception of a pipeline's module or of a stage is other people's code: its class name may have megabytes, and its
`__str__` may raise.
"""

from typing import Final

#: Longer texts are truncated to this many characters: they are for people.
MAX_LENGTH: Final = 2000
MAX_NAME_LENGTH: Final = 200


def describe(error: BaseException, length: int = MAX_LENGTH) -> str:
    """Return the name of the exception's class and its text, at most `length` characters of it."""
    return f"{name_of(error)}: {text_of(error, length)}".rstrip(": ")


def name_of(error: BaseException) -> str:
    """Return the name of the exception's class, whatever its metaclass says."""
    return clean(type.__dict__["__name__"].__get__(type(error)), MAX_NAME_LENGTH)


def text_of(error: BaseException, length: int = MAX_LENGTH) -> str:
    """Return the text of the exception: at most `length` characters that can be stored."""
    try:
        return clean(str(error), length)
    except BaseException:  # an exception's own __str__ may raise anything
        return "the text of this error is not available"


def clean(text: str, length: int) -> str:
    """Return at most `length` characters of the text, without what Postgres or UTF-8 do not take."""
    # A subclass of str may have methods of its own.
    cut = str.__getitem__(text, slice(0, length))
    return str.__str__(cut).encode(errors="replace").decode().replace("\x00", "�")
