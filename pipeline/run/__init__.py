"""A run: what is asked for, who answers it, what there is of it, and the processes that work."""
