"""Settings that change on the way, as a page shows them."""

from __future__ import annotations

from pipeline.config.course import Course
from pipeline.config.run import RunConfig
from pipeline.look.report.sections import Grid


def each(config: RunConfig, name: str) -> list[str]:
    """Values of a setting of `train`, in the order in which the iterations have them."""
    return list(dict.fromkeys(str(getattr(here.train, name)) for _, here in Course(config).distinct()))


def by_iteration(config: RunConfig) -> Grid | None:
    """What holds in which iterations; None where it is the same in all."""
    stretches = Course(config).table()
    if not (config.phases or config.schedules):
        return None
    names = list(dict.fromkeys(name for stretch in stretches for name in stretch.settings))
    rows = [[stretch.iterations, *(stretch.shown(name) for name in names)] for stretch in stretches]
    return Grid(("iterations", *names), rows)
