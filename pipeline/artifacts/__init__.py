"""Artifacts: immutable directories that exist exactly when their manifest does."""

from pipeline.artifacts.store import Artifact, Request, Store
from pipeline.artifacts.tables import read_table, scan_table
from pipeline.artifacts.work import Work

__all__ = ["Artifact", "Request", "Store", "Work", "read_table", "scan_table"]
