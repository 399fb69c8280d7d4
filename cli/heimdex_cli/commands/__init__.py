"""The commands that do more than send one request: run, demo, watch, key."""
