"""Turns what a stage and its child processes write to standard output and error into log entries."""
