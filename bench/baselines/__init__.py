"""Baselines: minimal programs that do the same work. Heimdex's figures are given as multiples of theirs."""
