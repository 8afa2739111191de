"""What every room uses: no network, Prefect's files in a temporary place, a small config and finished artifacts by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Artifact, Request, Store
from pipeline.artifacts.work import Work
from pipeline.config import RunConfig

SETTINGS: dict[str, Any] = {
    "name": "small",
    "model": {"path": "model"},
    "data": {"train": {"path": "train.jsonl"}, "heldout": {"path": "heldout.jsonl"}},
    "reward": {"components": [{"grader": "exact_match"}]},
}


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    home = tmp_path_factory.mktemp("prefect")
    variables = {
        "PREFECT_HOME": str(home),
        "PREFECT_MEMO_STORE_PATH": str(home / "memo_store.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def settings() -> Callable[..., dict[str, Any]]:
    """settings({"train.epochs": 2}): the least that a run needs, with changes by dotted key."""

    def make(changes: dict[str, Any] | None = None) -> dict[str, Any]:
        tree: dict[str, Any] = copy.deepcopy(SETTINGS)
        for key, value in (changes or {}).items():
            *parents, last = key.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        return tree

    return make


@pytest.fixture
def make_config(settings: Callable[..., dict[str, Any]]) -> Callable[..., RunConfig]:
    """make_config({"train.epochs": 2}): `settings` as a RunConfig."""
    return lambda changes=None: RunConfig.model_validate(settings(changes))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def make_artifact(store: Store) -> Callable[..., Artifact]:
    """make_artifact("shaped", name="a"): a finished artifact with that recipe and one file, in `store`."""

    def make(kind: Any = "shaped", **recipe: Any) -> Artifact:
        with store.work(Request(kind, "test/1", recipe)) as work:
            if not isinstance(work, Work):
                return work
            (work.path / "file.txt").write_text(f"{kind} {recipe}", encoding="utf-8")
            return work.finish({"iteration": recipe.get("iteration", 0)})

    return make
