"""What somebody may have meant who mistyped a path."""

from __future__ import annotations

import difflib
from itertools import pairwise
from pathlib import Path

CUTOFF = 0.6
"""How alike two names must be, from 0 to 1."""


def near_path(path: str | Path) -> str | None:
    """The path that is there and whose one wrong part is spelled most alike, or has an ending more."""
    here = Path(path)
    parts = [here, *here.parents]
    missing = next((part for part, above in pairwise(parts) if above.is_dir()), None)
    if missing is None or missing.exists():
        return None
    rest = here.relative_to(missing)
    try:
        there = sorted(child.name for child in missing.parent.iterdir() if not child.name.startswith("."))
    except OSError:
        return None
    endings = [name for name in there if Path(name).stem == missing.name]
    for name in [*endings, *difflib.get_close_matches(missing.name, there, n=5, cutoff=CUTOFF)]:
        if (found := missing.parent / name / rest).exists():
            return str(found)
    return None


def did_you_mean(path: str | Path) -> str:
    """A sentence to follow a refusal, with a space before it; nothing where no path is near."""
    found = near_path(path)
    return f". Did you mean {found}?" if found else ""
