"""Whether a stream or a consumer is configured as this project relies on. Pure.

nats-server keeps silent about an option that it does not know, and about one that an operator has changed. So what it
answers is compared field by field with what is wanted, and a difference is named.
"""

from typing import Any, Final

#: nats-server 2.12 brought atomic batches and message schedules.
NEEDED_VERSION: Final = (2, 12)
#: Options that an older server does not know, and leaves out of its answer.
_NEW_OPTIONS: Final = frozenset({"allow_atomic", "allow_msg_schedules"})

Drift = dict[str, tuple[Any, Any]]


def drift(found: dict[str, Any], wanted: dict[str, Any]) -> Drift:
    """The fields that differ: name, and the value found and the one wanted. What is not in `wanted` may be anything."""
    return {name: (found.get(name), value) for name, value in wanted.items() if not _same(found.get(name), value)}


def sentence(name: str, differs: Drift, server_version: str) -> str:
    """What is wrong with the stream or consumer `name` that could not be configured, and what to do."""
    fields = ", ".join(sorted(differs))
    if _NEW_OPTIONS & differs.keys() and _version(server_version) < NEEDED_VERSION:
        return (
            f"nats-server {server_version or 'of an unknown version'} is too old: {name} needs {fields}, "
            "which nats-server has from 2.12 on. Upgrade nats-server."
        )
    if _NEW_OPTIONS & differs.keys():
        return (
            f"{name} needs {fields}, and its leader does not know them: every server of the cluster must be "
            "nats-server 2.12 or newer."
        )
    shown = ", ".join(f"{field} is {found!r} and must be {wanted!r}" for field, (found, wanted) in differs.items())
    return f"{name} is not configured as it must be, and NATS does not change it: {shown}."


def _same(found: Any, wanted: Any) -> bool:
    # The server leaves out what is empty, off or zero.
    return found == wanted or (not wanted and not found)


def _version(text: str) -> tuple[int, ...]:
    numbers = text.split("-")[0].split(".")
    return tuple(int(number) for number in numbers[:2] if number.isdigit())
