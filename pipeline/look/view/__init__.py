"""All completions of runs, stores and imports in a browser: read from their Parquet files as they are, and never written."""
