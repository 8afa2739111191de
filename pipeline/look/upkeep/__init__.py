"""`rollbook repair`, `gc`, `sign` and `verify`."""
