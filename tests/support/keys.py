"""API keys for the tests of gateways that require one."""

import hashlib

#: The keys by holder: two tenants, of which `acme` has two keys, and the tenant of jobs submitted without a key.
KEYS = {
    "acme": "key-of-acme-0123456789",
    "acme-new": "key-of-acme-9876543210",
    "beta": "key-of-beta-0123456789",
    "default": "key-of-default-0123456789",
}


def entries(*holders: str) -> str:
    """Return the value of HEIMDEX_API_KEYS for these holders, or for all. `acme-new` belongs to the tenant `acme`."""
    return ",".join(
        f"{holder.partition('-')[0]}:{hashlib.sha256(KEYS[holder].encode()).hexdigest()}" for holder in holders or KEYS
    )
