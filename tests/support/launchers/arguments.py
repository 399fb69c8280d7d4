"""Passes further arguments to a constructor, wherever a service calls it: a shorter time-out, a smaller limit."""

from functools import partialmethod
from typing import Any


def construct_with(built: type, **arguments: Any) -> None:
    """Pass these arguments to the constructor of every `built` object of this process, besides the service's own.

    An argument that the constructor does not have is a TypeError when the service starts.
    """
    built.__init__ = partialmethod(built.__init__, **arguments)  # type: ignore[misc]
