"""What a stage returns, as JSON: encoded, and decoded again as the declared type, by the worker that made it. Pure.

So what does not survive the way to the next stage fails the attempt that returned it, and not a later one.
"""

from collections.abc import Iterable
from typing import Any, Final, get_args

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
        self._name = declared.__name__ if isinstance(declared, type) and not get_args(declared) else str(declared)
        self._is_declared = declared is not None
        self._decoder = msgspec.json.Decoder(Any if declared is None else declared)

    def encode(self, value: Any, earlier: Iterable[msgspec.Raw] = ()) -> msgspec.Raw:
        """Return the value as JSON, NOTHING for None.

        earlier: the outputs of the stages before, which travel along. Raises OutputRefused.
        """
        if value is None:
            if self._is_declared:
                self._check_nothing()
            return NOTHING
        try:
            encoded = msgspec.json.encode(value)
        except RecursionError:
            raise OutputRefused("the output refers to itself or is nested too deeply") from None
        except UnicodeEncodeError:
            raise OutputRefused("the output contains half of a surrogate pair, which is not a character") from None
        except Exception as error:
            raise OutputRefused(f"the output cannot be encoded as JSON: {_reason(error)}{_hint(error)}") from None
        if len(encoded) > MAX_BYTES:
            raise OutputRefused(f"the output has {len(encoded)} bytes as JSON; a stage may return {MAX_BYTES} at most")
        together = len(encoded) + sum(len(memoryview(each)) for each in earlier)
        if together > MAX_TOGETHER_BYTES:
            raise OutputRefused(
                f"the outputs of this job's stages have {together} bytes together; {MAX_TOGETHER_BYTES} are allowed"
            )
        if json_values.too_deep(encoded):
            raise OutputRefused(f"the output is nested too deeply: {json_values.MAX_DEPTH} levels are allowed")
        if b"null" in encoded or b'nan":' in encoded or b'inf":' in encoded:
            _check_numbers(value)
        self._decode(encoded)
        if not encoded.isascii():
            _check_utf8(encoded)
        if (b"\\" in encoded and b"\\u" in encoded) or (b"$" in encoded and b'$heimdex"' in encoded):
            _check_text(encoded)
        return msgspec.Raw(encoded)

    def _check_nothing(self) -> None:
        try:
            self._decoder.decode(b"null")
        except (Exception, SystemExit):
            raise OutputRefused(f"the output is missing: the stage declares {self._name} and returned None") from None

    def decode(self, encoded: msgspec.Raw) -> Any:
        """Return the value of an output that a worker has encoded. Raises OutputRefused if it does not fit the type."""
        return self._decode(encoded or b"null")

    def _decode(self, encoded: bytes | msgspec.Raw) -> Any:
        try:
            return self._decoder.decode(encoded)
        except (Exception, SystemExit) as error:  # a struct's own __post_init__ may raise anything
            what = f"does not fit the declared type {self._name}" if self._is_declared else "is not valid JSON"
            raise OutputRefused(f"the output {what}: {_reason(error)}") from None


def _check_numbers(value: Any) -> None:
    """Raise for a NaN or an infinity, which the encoder replaces with null, or as a key with text."""
    try:
        plain = msgspec.to_builtins(value, enc_hook=lambda _: None)  # Raw, which is JSON already
    except Exception as error:
        raise OutputRefused(f"the output cannot be encoded as JSON: {_reason(error)}") from None
    for path, fault in json_values.problems(plain, _NAME):
        if "finite" in fault:
            raise OutputRefused(f"the output contains a NaN or an infinity, which JSON does not have: {path}")


def _check_utf8(encoded: bytes) -> None:
    """Raise for JSON of the author's own (msgspec.Raw) that is skipped when the declared type is decoded."""
    try:
        encoded.decode()
    except UnicodeDecodeError:
        raise OutputRefused("the output contains text that is not UTF-8") from None


def _check_text(encoded: bytes) -> None:
    try:
        value = msgspec.json.decode(encoded)
    except msgspec.MsgspecError as error:
        raise OutputRefused(f"the output is not JSON that every reader takes: {_reason(error)}") from None
    for path, fault in json_values.problems(value, _NAME):
        if "64 bits" not in fault:
            raise OutputRefused(f"{path} {fault}")
    if RESERVED_KEY in json_values.keys(value):
        raise OutputRefused(f"the output has the key {RESERVED_KEY!r}, which is reserved")


def _hint(error: Exception) -> str:
    """Return what to do about a value of a type that cannot be encoded, such as numpy's."""
    unsupported = "Encoding objects of type" in _reason(error)
    return "; return a built-in type, such as float(value), or a msgspec.Struct" if unsupported else ""


def _reason(error: BaseException) -> str:
    try:
        text = json_values.printable(str(error), _MAX_REASON_LENGTH)
    except Exception:  # an error's own __str__ may raise anything
        return type(error).__name__
    return text if isinstance(error, msgspec.MsgspecError | TypeError) else f"{type(error).__name__}: {text}"
