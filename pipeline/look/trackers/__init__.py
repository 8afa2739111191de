"""Dashboards: a run's figures, read from its artifacts, sent to a tracker. Nothing else in the pipeline knows of them."""
