"""`rollbook diff`."""
