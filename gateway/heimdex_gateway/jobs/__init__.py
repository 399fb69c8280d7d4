"""The use cases: submitting, reading, following, canceling and retrying jobs. No HTTP: no framework, no status code."""
