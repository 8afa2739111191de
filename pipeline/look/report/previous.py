"""What a run changed against the one before it."""

from __future__ import annotations

import contextlib

from pipeline.common.differences import differences
from pipeline.common.errors import UserError
from pipeline.look.report.sections import Grid
from pipeline.run.record import RECORD, load_run
from pipeline.run.state import Run

OWN = {"name", "run_dir", "store", "tell", "track"}
"""Settings that differ between runs by their nature."""


def changed_settings(run: Run) -> Grid | None:
    """Settings in which a run differs from the last one beside it; None if there is none, or no difference."""
    before = previous_run(run)
    if before is None:
        return None
    old, new = (one.config.model_dump(mode="json", exclude=OWN) for one in (before, run))
    rows = [[found.key, str(found.a), str(found.b)] for found in differences(old, new)]
    return Grid(("setting", before.config.name, run.config.name), rows) if rows else None


def previous_run(run: Run) -> Run | None:
    """The run in the same parent directory whose record was written last before this one's."""
    here = run.config.directory / RECORD
    if not here.exists():
        return None
    written = {path: path.stat().st_mtime for path in here.parent.parent.glob(f"*/{RECORD}")}
    earlier = [path for path, when in written.items() if when < here.stat().st_mtime and path != here]
    for path in sorted(earlier, key=written.__getitem__, reverse=True):
        with contextlib.suppress(UserError):  # a run that cannot be read is not one to compare with
            return load_run(path.parent)
    return None
