"""The command that a process works for."""

from __future__ import annotations

COMMAND = "ROLLBOOK_COMMAND"
"""Variable that hands the user's command line, as JSON, down to every process that works for it."""
