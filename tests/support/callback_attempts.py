"""One try to call back, without a system around it, for the tests."""

from collections.abc import Awaitable, Callable

from heimdex_callbacks.sender import Answer
from heimdex_contracts.messages import Completed
from tests.support.histories import Writer

#: Makes a try to a URL.
Post = Callable[[str], Awaitable[Answer]]


def completed() -> Completed:
    """How a job ended."""
    writer = Writer()
    while writer.finish_stage():
        pass
    assert isinstance(writer.events[-1], Completed)
    return writer.events[-1]


END = completed()
