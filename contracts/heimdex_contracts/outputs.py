"""What a stage returns, as JSON: encoded, and decoded again as the declared type, by the worker that made it. Pure.

So what does not survive the way to the next stage fails the attempt that returned it, and not a later one.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from heimdex_contracts import json_values
from heimdex_contracts.errors import HeimdexError
from heimdex_contracts.messages import NOTHING

#: The largest output of a stage, and of all stages of a job together, in bytes of JSON. Every hand-over carries them.
MAX_BYTES: Final = 16 * 1024
MAX_TOGETHER_BYTES: Final = 64 * 1024
#: A key that outputs of stages must not have.
RESERVED_KEY: Final = "$heimdex"
_NAME: Final = "output"
_MAX_REASON_LENGTH: Final = 500


class OutputRefused(HeimdexError):
    """A stage returned what cannot be handed over. The text continues a sentence: `the output ...`."""


class OutputType:
    """The type of a stage's output. declared: as in `Stage.output`; None: anything that JSON can hold."""

    def __init__(self, declared: Any) -> None:
        self._name = getattr(declared, "__name__", None) or repr(declared)
        self._is_declared = declared is not None
        self._decoder = msgspec.json.Decoder(Any if declared is None else declared)

    def encode(self, value: Any, earlier: Iterable[msgspec.Raw] = ()) -> msgspec.Raw:
        """Return the value as JSON, NOTHING for None.

        earlier: the outputs of the stages before, which travel along. Raises OutputRefused.
        """
        if value is None:
            if self._is_declared:
                self._decode(b"null", "the stage returned nothing")
            return NOTHING
        try:
            encoded = msgspec.json.encode(value)
        except RecursionError:
            raise OutputRefused("the output refers to itself or is nested too deeply") from None
        except UnicodeEncodeError:
            raise OutputRefused("the output contains half of a surrogate pair, which is not a character") from None
        except Exception as error:
            raise OutputRefused(f"the output cannot be encoded as JSON: {_reason(error)}") from None
        if len(encoded) > MAX_BYTES:
            raise OutputRefused(f"the output has {len(encoded)} bytes as JSON; a stage may return {MAX_BYTES} at most")
        together = len(encoded) + sum(len(memoryview(each)) for each in earlier)
        if together > MAX_TOGETHER_BYTES:
            raise OutputRefused(
                f"the outputs of this job's stages have {together} bytes together; {MAX_TOGETHER_BYTES} are allowed"
            )
        if json_values.too_deep(encoded):
            raise OutputRefused(f"the output is nested too deeply: {json_values.MAX_DEPTH} levels are allowed")
        if b"null" in encoded:
            _check_numbers(value)
        if b"\\u0000" in encoded or b'"$heimdex"' in encoded:
            _check_text(msgspec.json.decode(encoded))
        self._decode(encoded, "the output")
        return msgspec.Raw(encoded)

    def decode(self, encoded: msgspec.Raw) -> Any:
        """Return the value of an output that a worker has encoded. Raises OutputRefused if it does not fit the type."""
        return self._decode(encoded or b"null", "the output")

    def _decode(self, encoded: bytes | msgspec.Raw, subject: str) -> Any:
        try:
            return self._decoder.decode(encoded)
        except Exception as error:  # a struct's own __post_init__ may raise anything
            raise OutputRefused(f"{subject} does not fit the declared type {self._name}: {_reason(error)}") from None


def _check_numbers(value: Any) -> None:
    """Raise for a NaN or an infinity, which the encoder replaces with null."""
    try:
        plain = msgspec.to_builtins(value)
    except Exception:  # what can be encoded but not converted holds JSON already
        return
    for path, fault in json_values.problems(plain, _NAME):
        if "finite" in fault:
            raise OutputRefused(f"the output contains a NaN or an infinity, which JSON does not have: {path}")


def _check_text(value: Any) -> None:
    for path, fault in json_values.problems(value, _NAME):
        raise OutputRefused(f"{path} {fault}")
    if RESERVED_KEY in json_values.keys(value):
        raise OutputRefused(f"the output has the key {RESERVED_KEY!r}, which is reserved")


def _reason(error: Exception) -> str:
    try:
        return json_values.printable(str(error)[:100]) + str(error)[100:_MAX_REASON_LENGTH]
    except Exception:  # an error's own __str__ may raise anything
        return type(error).__name__
