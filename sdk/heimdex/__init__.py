"""What an author of pipelines imports: the declarations, and what the functions of stages use.

from heimdex import Context, Pipeline, Stage
"""

from heimdex.context import CommandFailed, Context, StageInterrupted
from heimdex.errors import PermanentError, RetryAfter
from heimdex_contracts.pipelines import Pipeline, Stage

__all__ = [
    "CommandFailed",
    "Context",
    "PermanentError",
    "Pipeline",
    "RetryAfter",
    "Stage",
    "StageInterrupted",
]
