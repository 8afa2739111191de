"""Well-known data sets, one a file: which of their columns are the question and its reference."""
