"""Scripts that start a service with one function of it changed, for what no signal from outside can time."""
