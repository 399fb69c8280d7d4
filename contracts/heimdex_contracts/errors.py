"""The errors that rooms tell each other about, by what the catcher must do.

HeimdexError
├── SettingsError      the process cannot start: one line on stderr, exit code 2
├── CannotServe        what the process reached is not for it: one line on stderr, exit code 2
├── UnusableMessage    a message that no retry can mend: set it aside, go on with the next
├── Superseded         the job has moved on without us: drop what we hold, it is somebody else's now
└── BrokerUnavailable  NATS did not answer in time: nothing is known about the outcome, ask again later
    └── LeaderBehind   the stream's leader answered, and does not know yet what this process was delivered
"""


class HeimdexError(Exception):
    """The root of this project's errors; its text is one sentence for the person who reads it."""


class SettingsError(HeimdexError):
    """A setting that cannot be used; the text names the environment variable."""


class CannotServe(HeimdexError):
    """NATS or Postgres is not what this process may work with; the text says why, and what to do."""


class UnusableMessage(HeimdexError):
    """A payload that is not what its subject promises; the text says why."""


class Superseded(HeimdexError):
    """The broker refused a message because the job already has another successor."""


class BrokerUnavailable(HeimdexError):
    """NATS or its JetStream did not answer before the deadline."""


class LeaderBehind(BrokerUnavailable):
    """The leader of a replicated stream has not applied a message yet that one of its consumers has delivered."""
