"""A generation on a cluster of two nodes, with real engines of the tiny model, gives the artifacts of one machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.store import Store

pytestmark = [pytest.mark.needs("ray"), pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[4]
CONFIG: dict[str, Any] = {
    "name": "far",
    "model": {"path": str(ROOT / "data/base")},
    "data": {
        "train": {"path": str(ROOT / "data/arithmetic/train.parquet"), "prompt_id": "prompt_id", "limit": 16},
        "heldout": {"path": str(ROOT / "data/arithmetic/heldout.parquet"), "prompt_id": "prompt_id", "limit": 4},
        "template": "Q:{question}=",
    },
    "engine": {"kv_cache_mib": 32, "max_num_seqs": 8},
    "generate": {"prompts": 8, "samples": 4, "max_tokens": 32, "shard_groups": 2},
    "reward": {"components": [{"grader": "regex", "args": {"pattern": "A:(-?[0-9]+)$"}}]},
    "evaluate": {"samples": 1, "greedy": False},
}


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("VLLM_PLUGINS", "rollbook")  # Trinity-RFT's, installed beside, imports what this vLLM does not have
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()


def test_two_nodes_give_the_artifacts_of_one_machine(address: str, tmp_path: Path) -> None:
    (tmp_path / "far.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    made = {}
    for place, settings in (("here", []), ("there", ["--set", f"cluster.ray={address}"])):
        run = tmp_path / place
        command = [sys.executable, "-m", "flows.cli", "generate", "far.json", "--set", f"run_dir={run}", *settings]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        made[place] = {artifact.path.name: artifact.id for artifact in Store(run / "artifacts").artifacts()}
    assert len(made["here"]) == 5 and made["there"] == made["here"]
