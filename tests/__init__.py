"""The tests. `harness` is what they share; the other folders mirror what they test."""
