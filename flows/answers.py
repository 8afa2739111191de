"""Who answers the orders of a run on this machine, put together from parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config.run import RunConfig
from pipeline.generate.engine import engine_environment
from pipeline.regrade.answers import Regrading
from pipeline.run.answers import Listener, Local, Look, quiet
from pipeline.run.order import Answerer
from pipeline.run.processes import Processes
from pipeline.store import Store


def looking(config: RunConfig) -> Answerer:
    """Finds what is finished, and makes nothing."""
    store = Store(config.store_url)
    return Regrading(Look(store), store)


def working(config: RunConfig, processes: Processes, listener: Listener = quiet) -> Answerer:
    """Finds what is finished, and has processes of this machine do the rest.

    Args:
        processes: those that do the work.
        listener: called with what happens.
    """
    return Regrading(local(config, processes, listener), Store(config.store_url))


def local(config: RunConfig, processes: Processes, listener: Listener = quiet) -> Local:
    """As `working`, without looking for completions that only need other grades."""
    return Local(Store(config.store_url), processes, config.directory / "logs", listener)


@contextmanager
def hands() -> Iterator[Processes]:
    """Processes for the work, which end with the block."""
    processes = Processes(engine_environment())
    try:
        yield processes
    finally:
        processes.close()
