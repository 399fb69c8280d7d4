"""Keys for gateways that want one."""

import hashlib

#: By whom they are held: two tenants, one of them with two keys, and the tenant of those who have none.
KEYS = {
    "acme": "key-of-acme-0123456789",
    "acme-new": "key-of-acme-9876543210",
    "beta": "key-of-beta-0123456789",
    "default": "key-of-default-0123456789",
}


def entries(*holders: str) -> str:
    """For HEIMDEX_API_KEYS: those of these holders, or of all. `acme-new` belongs to the tenant `acme`."""
    return ",".join(
        f"{holder.partition('-')[0]}:{hashlib.sha256(KEYS[holder].encode()).hexdigest()}" for holder in holders or KEYS
    )
