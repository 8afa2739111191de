"""The settings of a run, one file a section."""
