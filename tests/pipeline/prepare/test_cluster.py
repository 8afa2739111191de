"""What a look at a cluster refuses before Ray is asked."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.prepare.cluster import look_at_cluster


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_a_cluster_without_ray_says_what_to_install(tmp_path: Path) -> None:
    side = {"path": str(tmp_path / "prompts.parquet")}
    config = RunConfig.model_validate(
        {
            "name": "far",
            "model": {"path": str(tmp_path)},
            "data": {"train": side, "heldout": side, "template": "{question}"},
            "reward": {"components": [{"grader": "regex", "args": {"pattern": "(.*)"}}]},
            "cluster": {"ray": "127.0.0.1:9"},
        }
    )
    with pytest.raises(
        UserError, match=r"cluster\.ray: Ray is not installed: pip install 'rollbook\[ray\]', here and on every node"
    ):
        look_at_cluster(config)
