"""The payloads on HEIMDEX_CALLBACKS: callbacks that are due, and the result of each attempt to deliver one.

    due ──> failed ──> … ──> failed ──> delivered | given-up

Like a hand-over, the message of a failed attempt has two purposes: it records the failure in the history, and it is the
work item of the next attempt. The number of the attempt is therefore in the message rather than in the broker's
delivery count, and no restart uses up an attempt.
"""

from typing import Final

import msgspec

from heimdex_contracts import messages
from heimdex_contracts.messages import NOTHING, Count, End, Moment, Seconds, Text
from heimdex_contracts.subjects import CALLBACK_DELIVERED, CALLBACK_DUE, CALLBACK_FAILED, CALLBACK_GIVEN_UP


class CallbackMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    """The fields that all callback messages share.

    end: the terminal event that the callback reports, as `reported`. A later run of the job does not change it.
    tries: the number of attempts made so far, including the one whose result this message reports.
    """

    end: End
    tries: Count = 0
    at: Moment


class CallbackDue(CallbackMessage, frozen=True, kw_only=True, tag=CALLBACK_DUE, omit_defaults=True):
    """The job has reached a terminal state, and its `callback_url` must be notified."""


class CallbackFailed(CallbackMessage, frozen=True, kw_only=True, tag=CALLBACK_FAILED, omit_defaults=True):
    """The attempt failed; the next one follows after `delay_seconds`."""

    error: Text
    delay_seconds: Seconds


class CallbackDelivered(CallbackMessage, frozen=True, kw_only=True, tag=CALLBACK_DELIVERED, omit_defaults=True):
    """The receiver accepted the callback."""


class CallbackGivenUp(CallbackMessage, frozen=True, kw_only=True, tag=CALLBACK_GIVEN_UP, omit_defaults=True):
    """The last attempt failed; no other follows."""

    error: Text


#: The messages that the gateways consume: each calls for an attempt.
CallbackWork = CallbackDue | CallbackFailed
#: The messages that the status store consumes: each reports the result of an attempt.
CallbackResult = CallbackFailed | CallbackDelivered | CallbackGivenUp
AnyCallback = CallbackDue | CallbackFailed | CallbackDelivered | CallbackGivenUp

_encoder: Final = msgspec.json.Encoder()
_work: Final = msgspec.json.Decoder(CallbackWork)
_results: Final = msgspec.json.Decoder(CallbackResult)
_TOKENS: Final = {
    CallbackDue: CALLBACK_DUE,
    CallbackFailed: CALLBACK_FAILED,
    CallbackDelivered: CALLBACK_DELIVERED,
    CallbackGivenUp: CALLBACK_GIVEN_UP,
}


def encode(message: AnyCallback) -> bytes:
    """Encode a message as compact JSON."""
    return _encoder.encode(message)


def reported(end: End) -> End:
    """Return the terminal event without what the job object does not show: the parameters and the stages' outputs.

    Each attempt to deliver the callback would carry them. The last stage's output is in `result`, and stays.
    """
    if end.params or any(run.output for run in end.finished):
        finished = tuple(msgspec.structs.replace(run, output=NOTHING) for run in end.finished)
        return msgspec.structs.replace(end, params=NOTHING, finished=finished)
    return end


def token(message: AnyCallback) -> str:
    """Return the third token of this message's subject."""
    return _TOKENS[type(message)]


def message_id(message: AnyCallback) -> str:
    """Return the message's `Nats-Msg-Id`. It is the same whenever the same result is published again."""
    return f"{message.end.job_id}.{message.end.step}.{message.tries}.{token(message)}"


def decode_work(subject: str, payload: bytes) -> CallbackWork:
    """Decode a message on `heimdex.callbacks.<due, failed>.<job_id>`.

    Raises UnusableMessage when the payload is invalid or belongs to another subject.
    """
    message: CallbackWork = messages.decode(_work, payload)
    messages.check_subject(subject, "callbacks", token(message), message.end.job_id)
    return message


def decode_result(subject: str, payload: bytes) -> CallbackResult:
    """Decode a message on `heimdex.callbacks.<failed, delivered, given-up>.<job_id>`.

    Raises UnusableMessage when the payload is invalid or belongs to another subject.
    """
    message: CallbackResult = messages.decode(_results, payload)
    messages.check_subject(subject, "callbacks", token(message), message.end.job_id)
    return message
