"""Artifacts: immutable directories that exist exactly when their manifest does."""

from pipeline.store.artifact import Artifact, Request
from pipeline.store.store import Store
from pipeline.store.tables import read_table, scan_table
from pipeline.store.work import Work

__all__ = ["Artifact", "Request", "Store", "Work", "read_table", "scan_table"]
