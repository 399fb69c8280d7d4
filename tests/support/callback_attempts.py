"""What a test needs to make one callback attempt without a running system."""

from collections.abc import Awaitable, Callable

from heimdex_callbacks.sender import Answer
from heimdex_contracts.messages import Completed
from tests.support.histories import Writer

#: Makes one callback attempt to a URL and returns its result.
Post = Callable[[str], Awaitable[Answer]]


def completed() -> Completed:
    """Return the terminal event of a job that completed."""
    writer = Writer()
    while writer.finish_stage():
        pass
    assert isinstance(writer.events[-1], Completed)
    return writer.events[-1]


END = completed()
