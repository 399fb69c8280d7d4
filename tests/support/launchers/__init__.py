"""Scripts that start a service with one of its functions replaced, for faults that a signal cannot time exactly."""
