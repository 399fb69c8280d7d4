"""What people read on the terminal: progress bars, tables, and what workers log."""
