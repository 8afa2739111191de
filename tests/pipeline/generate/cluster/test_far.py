"""Engines on a cluster: real raylets on this machine, light engines that answer from seeds, and nodes that go without a word."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import StageFailed, UserError
from pipeline.config.cluster import ClusterConfig
from pipeline.config.engine import EngineConfig, SamplingConfig
from pipeline.generate.engine import CompletionRequest, Reply
from pipeline.generate.engines import hands
from pipeline.generate.engines.fleet import Fleet

pytestmark = [pytest.mark.needs("ray"), pytest.mark.timeout(300)]

ENGINE = """
    import json, os, sys, time
    from pipeline.generate.engine import Reply
    from pipeline.generate.engines.wire import asks_from_json, reply_to_json
    from pipeline.run.process import as_child

    reporter = as_child()
    for line in sys.stdin:
        message = json.loads(line)
        if "load" in message:
            if "refuse" in message["load"]["model"]:
                reporter.send("error", kind="UserError", message="vLLM cannot load it")
                os._exit(2)
            reporter.send("ready", name="light")
        elif "group" in message:
            for ask in asks_from_json(message):
                time.sleep(0.01)
                tokens = [ask.seed % 7, *ask.prompt_token_ids]
                reply = Reply(ask.key, tokens, [-0.5] * len(tokens), "stop", None, None)
                reporter.send("replies", replies=[reply_to_json(reply)])
"""


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without room for an engine; nodes come and go."""
    import ray
    from ray.cluster_utils import Cluster

    directory = tmp_path_factory.mktemp("light")
    (directory / "light_engine.py").write_text(textwrap.dedent(ENGINE), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{directory}{os.pathsep}{os.environ.get('PYTHONPATH', os.getcwd())}")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setattr(hands, "MODULE", "light_engine")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def nodes(cluster: Any) -> Iterator[Any]:
    """nodes(n): so many nodes of one core each, and the cluster's address."""
    there: list[Any] = []

    def add(count: int) -> list[Any]:
        there.extend(cluster.add_node(num_cpus=1) for _ in range(count))
        cluster.wait_for_nodes()
        return there

    yield add
    for node in there:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)


def fleet_of(cluster: Any, model: str = "model", **settings: Any) -> tuple[Fleet, Notes]:
    from pipeline.generate.cluster.far import Far

    notes: Any = Notes()
    far = Far(EngineConfig(), ClusterConfig(ray=cluster.address, **settings))
    return Fleet(Path(model), EngineConfig(), "float32", trust_remote_code=False, reporter=notes, hands=far), notes


def asks(groups: int) -> list[CompletionRequest]:
    sampling = SamplingConfig()
    return [
        CompletionRequest((0, group, sample), [group], sampling, seed=group + sample)
        for group in range(groups)
        for sample in (0, 1)
    ]


def expected(wanted: list[CompletionRequest]) -> list[Reply]:
    return [Reply(ask.key, [ask.seed % 7, *ask.prompt_token_ids], [-0.5] * 2, "stop", None, None) for ask in wanted]


def in_order(replies: list[Reply]) -> list[Reply]:
    return sorted(replies, key=lambda reply: reply.key)


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_nodes_gives_every_completion_once(cluster: Any, nodes: Any, count: int) -> None:
    nodes(count)
    fleet, _ = fleet_of(cluster)
    assert len(fleet.members) == count
    wanted = asks(groups=20)
    replies = [reply for replies in fleet.run(([ask] for ask in wanted), 4) for reply in replies]
    fleet.end()
    assert in_order(replies) == expected(wanted)


def test_a_node_that_goes_without_a_word_costs_nothing_but_time(cluster: Any, nodes: Any) -> None:
    two = nodes(2)
    fleet, notes = fleet_of(cluster)
    wanted, replies = asks(groups=150), []
    for some in fleet.run(([ask] for ask in wanted), 4):
        replies += some
        if len(replies) >= 40 and two[0] in cluster.worker_nodes:
            cluster.remove_node(two[0], allow_graceful=False)
    fleet.end()
    assert in_order(replies) == expected(wanted)
    assert any("was lost with its node or its actor" in note for note in notes.notes)


def test_a_node_that_comes_later_works_too(cluster: Any, nodes: Any) -> None:
    nodes(1)
    fleet, _ = fleet_of(cluster, engines=2)
    assert [member.is_ready for member in fleet.members].count(True) == 1
    wanted, replies = asks(groups=300), []
    for number, some in enumerate(fleet.run(([ask] for ask in wanted), 4)):
        replies += some
        if number == 0:
            nodes(1)
    tokens = fleet.tokens
    fleet.end()
    assert in_order(replies) == expected(wanted)
    assert all(tokens)


def test_a_cluster_without_room_is_told_and_not_waited_for(cluster: Any) -> None:
    begun = time.monotonic()
    with pytest.raises(StageFailed, match=r"no node of the cluster has had room for an engine for 1 s\. Each takes CPU 1"):
        fleet_of(cluster, place_seconds=1)
    assert time.monotonic() - begun < 60


def test_a_model_that_an_engine_refuses_is_the_users_mistake(cluster: Any, nodes: Any) -> None:
    nodes(1)
    with pytest.raises(UserError, match="vLLM cannot load it"):
        fleet_of(cluster, model="refuse")


def test_a_look_finds_room_and_the_store(cluster: Any, nodes: Any, tmp_path: Path) -> None:
    from pipeline.generate.cluster.nodes import look

    nodes(2)
    spec = {"cluster": {"ray": cluster.address}, "engine": {}, "store": str(tmp_path)}
    found = look(spec, None)  # type: ignore[arg-type]
    assert found["lines"] == [f"2 on 3 nodes of the cluster at {cluster.address}. Each takes CPU 1"]
    assert found["warnings"] == []
    assert list(tmp_path.iterdir()) == []
    spec["cluster"] = {"ray": cluster.address, "cpus": 64, "resources": {"big": 1}}
    with pytest.raises(UserError, match=r"no node has room for an engine\. Each takes CPU 64, big 1; there are "):
        look(spec, None)  # type: ignore[arg-type]


def test_a_store_that_a_node_does_not_see_is_named_before_any_work(cluster: Any, nodes: Any, tmp_path: Path) -> None:
    from pipeline.generate.cluster.nodes import look

    nodes(1)
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        store = f"/proc/self/fd/{here}"  # of this process alone
        spec = {"cluster": {"ray": cluster.address}, "engine": {}, "store": store}
        with pytest.raises(UserError, match=rf"node [0-9.]+ does not see the store {store}\. Put it .* or into a bucket"):
            look(spec, None)  # type: ignore[arg-type]
    finally:
        os.close(here)
    assert list(tmp_path.iterdir()) == []


def test_a_node_with_another_version_is_named_before_any_work(cluster: Any, tmp_path: Path) -> None:
    from pipeline.generate.cluster.nodes import look

    (tmp_path / "torch-0.0.1.dist-info").mkdir()
    (tmp_path / "torch-0.0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.0.1\n")
    other = f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}"
    node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": other})
    cluster.wait_for_nodes()
    spec = {"cluster": {"ray": cluster.address}, "engine": {}, "store": str(tmp_path / "store")}
    try:
        with pytest.raises(UserError, match=r"node [0-9.]+ has other versions: torch 0\.0\.1 \(here .*\)\. Install the same"):
            look(spec, None)  # type: ignore[arg-type]
    finally:
        cluster.remove_node(node)


def test_an_address_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from pipeline.generate.cluster.nodes import connect

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"nobody answers at 127\.0\.0\.1:9 "):
        connect(ClusterConfig(ray="127.0.0.1:9"))


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "http://head:1"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ValueError, match="expected auto, or HOST:PORT"):
        ClusterConfig(ray=address)
