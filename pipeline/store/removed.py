"""Files of a finished artifact that were removed on purpose: the manifest stays, and a note beside it says which, when and why.

The note is written first, so whoever is killed while removing leaves an artifact that says what it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

FORMAT = "rollbook-removed/1"


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What a note says."""

    files: tuple[str, ...]
    why: str
    created: str
    """UTC time."""

    @classmethod
    def now(cls, files: Sequence[str], why: str) -> Removal:
        return cls(files=tuple(files), why=why, created=datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def read(cls, text: str | None) -> Removal | None:
        """A note by its text; None if it is none."""
        try:
            value = json.loads(text or "")
            if value.pop("format") != FORMAT:
                return None
            found = cls(files=tuple(map(str, value["files"])), why=str(value["why"]), created=str(value["created"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return found

    @property
    def text(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    def __str__(self) -> str:
        return f"removed by retention ({self.why}) at {self.created}"


def is_weights(name: str) -> bool:
    """Whether a checkpoint's file is one that can be removed: its tables, its tokenizer and its settings stay."""
    return name.endswith(".safetensors")
