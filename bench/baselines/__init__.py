"""The least that the same work can cost: our figures are quoted as multiples of theirs."""
