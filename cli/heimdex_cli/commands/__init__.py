"""The commands that are more than one request: run, demo, watch, key."""
