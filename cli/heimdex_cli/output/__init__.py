"""The output on the terminal: progress bars, tables, and the failed attempts from the workers' logs."""
