"""A look at the cluster that a run's engines will be on, from a process of its own: Ray is joined once by each."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.generate.engine import engine_environment
from pipeline.run.process import StageProcess


def look_at_cluster(config: RunConfig) -> tuple[list[str], list[str]]:
    """What is there, and what will be slow. Nothing without `cluster`.

    Raises:
        UserError: nobody answers, a node does not see the store or has other versions, or none has room for an engine.
    """
    if config.cluster is None:
        return [], []
    if find_spec("ray") is None:
        raise UserError("cluster.ray: Ray is not installed: pip install 'rollbook[ray]', here and on every node")
    spec = {
        "cluster": config.cluster.model_dump(mode="json"),
        "engine": config.engine.model_dump(mode="json"),
        "store": config.store_url,
    }
    with tempfile.TemporaryDirectory() as place:
        log = Path(place) / "look.log"
        process = StageProcess("pipeline.generate.cluster", log, engine_environment())
        try:
            found = process.run(spec, log, lambda event: None)
        finally:
            process.end()
    return found["lines"], found["warnings"]
