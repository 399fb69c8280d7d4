"""The errors that packages share, grouped by what the caller must do.

HeimdexError
├── SettingsError      The process cannot start: print one line to stderr, exit with code 2.
├── CannotServe        NATS or Postgres belongs to another installation or is unsuitable: one log entry, exit code 2.
├── UnusableMessage    No retry can make this message readable: store it as a dead letter, continue with the next.
├── Superseded         The job already has another successor: drop the delivery, another process owns the job.
└── BrokerUnavailable  NATS did not answer in time: the outcome is unknown, retry later.
    └── LeaderBehind   The stream's leader answered but has not applied a message that was delivered to this process.
"""


class HeimdexError(Exception):
    """Base class of this project's errors. The text is one sentence, written for a person."""


class SettingsError(HeimdexError):
    """A setting has an invalid value. The text names the environment variable, and is made a single line."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class CannotServe(HeimdexError):
    """This process must not use the NATS or Postgres that it reached. The text gives the reason and the remedy."""


class UnusableMessage(HeimdexError):
    """A payload does not match what its subject requires. The text gives the reason."""


class Superseded(HeimdexError):
    """The broker refused a message because the job already has another successor."""


class BrokerUnavailable(HeimdexError):
    """NATS or its JetStream did not answer before the deadline, so the outcome is unknown."""


class LeaderBehind(BrokerUnavailable):
    """The leader of a replicated stream has not yet applied a message that one of its consumers has delivered."""
