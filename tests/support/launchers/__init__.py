"""Scripts that start a service with one of its functions replaced, for faults that a signal cannot time exactly.

Others start it with limits and delays that are not its own.
"""
