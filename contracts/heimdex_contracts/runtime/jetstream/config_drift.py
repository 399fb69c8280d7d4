"""Compares the configuration of a stream or consumer with the one that this project requires. Pure.

nats-server reports neither an option that it does not know nor one that an operator has changed. The configuration that
it returns is therefore compared with the required one field by field, and every difference is named.
"""

from typing import Any, Final

#: nats-server 2.12 introduced atomic batches and message schedules.
NEEDED_VERSION: Final = (2, 12)
#: Options that an older server does not know and omits from its response.
_NEW_OPTIONS: Final = frozenset({"allow_atomic", "allow_msg_schedules"})

Drift = dict[str, tuple[Any, Any]]


def drift(actual: dict[str, Any], required: dict[str, Any]) -> Drift:
    """Return the actual and the required value of each field that differs, by name. Other fields are ignored."""
    return {name: (actual.get(name), value) for name, value in required.items() if not _same(actual.get(name), value)}


def sentence(name: str, differs: Drift, server_version: str) -> str:
    """Describe why the stream or consumer `name` could not be configured, and what the operator can do."""
    fields = ", ".join(sorted(differs))
    if _NEW_OPTIONS & differs.keys() and _version(server_version) < NEEDED_VERSION:
        return (
            f"nats-server {server_version or 'of an unknown version'} is too old: {name} needs {fields}, "
            "which require nats-server 2.12 or newer. Upgrade nats-server."
        )
    if _NEW_OPTIONS & differs.keys():
        return (
            f"{name} needs {fields}, which its leader does not support: every server of the cluster must be "
            "nats-server 2.12 or newer."
        )
    values = ", ".join(f"{field} is {actual!r} but must be {value!r}" for field, (actual, value) in differs.items())
    return f"{name} has a wrong configuration that NATS does not change: {values}."


def _same(actual: Any, required: Any) -> bool:
    # The server omits options that are empty, off or zero.
    return actual == required or (not required and not actual)


def _version(text: str) -> tuple[int, ...]:
    numbers = text.split("-")[0].split(".")
    return tuple(int(number) for number in numbers[:2] if number.isdigit())
