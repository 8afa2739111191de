"""Forms of other trainers, one a file."""
