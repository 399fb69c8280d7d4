"""The payloads on HEIMDEX_CALLBACKS: what is owed to whoever gave a `callback_url`, and how each try to tell it went.

    due ──> failed ──> … ──> failed ──> delivered | given-up

As a hand-over does, a failed try says two things in one publish: the fact, for the history, and the next try's work. So
the number of a try is in the message, not the broker's count of deliveries, and no restart of anything uses up a try.
"""

from typing import Final

import msgspec

from heimdex_contracts import messages
from heimdex_contracts.messages import Count, End, Moment, Seconds, Text
from heimdex_contracts.subjects import CALLBACK_DELIVERED, CALLBACK_DUE, CALLBACK_FAILED, CALLBACK_GIVEN_UP


class CallbackMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    """What each of them carries: the end that is told, and how often that had been tried by then.

    The end as it was: no later run of the job changes what is told of this one.
    """

    end: End
    tries: Count = 0
    at: Moment


class CallbackDue(CallbackMessage, frozen=True, kw_only=True, tag=CALLBACK_DUE, omit_defaults=True):
    """The job has ended, and its `callback_url` is to be told."""


class CallbackFailed(CallbackMessage, frozen=True, kw_only=True, tag=CALLBACK_FAILED, omit_defaults=True):
    """This try failed; the next one follows after `delay_seconds`."""

    error: Text
    delay_seconds: Seconds


class CallbackDelivered(CallbackMessage, frozen=True, kw_only=True, tag=CALLBACK_DELIVERED, omit_defaults=True):
    """The receiver said that it has it."""


class CallbackGivenUp(CallbackMessage, frozen=True, kw_only=True, tag=CALLBACK_GIVEN_UP, omit_defaults=True):
    """This try failed, and none follows."""

    error: Text


#: What the gateways take: a try that is to be made.
CallbackWork = CallbackDue | CallbackFailed
#: What the status store takes: how a try went.
CallbackResult = CallbackFailed | CallbackDelivered | CallbackGivenUp
AnyCallback = CallbackDue | CallbackFailed | CallbackDelivered | CallbackGivenUp

_encoder: Final = msgspec.json.Encoder()
_work: Final = msgspec.json.Decoder(CallbackWork)
_told: Final = msgspec.json.Decoder(CallbackResult)
_TOKENS: Final = {
    CallbackDue: CALLBACK_DUE,
    CallbackFailed: CALLBACK_FAILED,
    CallbackDelivered: CALLBACK_DELIVERED,
    CallbackGivenUp: CALLBACK_GIVEN_UP,
}


def encode(message: AnyCallback) -> bytes:
    """As compact JSON."""
    return _encoder.encode(message)


def token(message: AnyCallback) -> str:
    """The third token of the subject that this message belongs on."""
    return _TOKENS[type(message)]


def message_id(message: AnyCallback) -> str:
    """Its `Nats-Msg-Id`: the same for every repetition of what it says."""
    return f"{message.end.job_id}.{message.end.step}.{message.tries}.{token(message)}"


def decode_work(subject: str, payload: bytes) -> CallbackWork:
    """The message on `heimdex.callbacks.due.<job_id>` or `.failed.`. Raises UnusableMessage."""
    message: CallbackWork = messages.decode(_work, payload)
    messages.check_subject(subject, "callbacks", token(message), message.end.job_id)
    return message


def decode_told(subject: str, payload: bytes) -> CallbackResult:
    """The message on `heimdex.callbacks.failed.<job_id>`, `.delivered.` or `.given-up.`. Raises UnusableMessage."""
    message: CallbackResult = messages.decode(_told, payload)
    messages.check_subject(subject, "callbacks", token(message), message.end.job_id)
    return message
