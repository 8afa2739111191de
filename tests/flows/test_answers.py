"""Orders on this machine: made once, found afterwards, and only looked for when that is all that was asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.answers import looking, working
from pipeline.common.errors import DataError, StageFailed, UserError
from pipeline.config.run import RunConfig
from pipeline.generate.engine import engine_environment
from pipeline.generate.order import generate_order
from pipeline.run.answers import Listener, quiet
from pipeline.run.order import Missing, Order, only
from pipeline.run.parts import Part
from pipeline.run.process import Event
from pipeline.run.processes import Processes
from pipeline.shape.mix.order import replayed
from pipeline.shape.order import shape_order
from pipeline.sources.order import heldout_prompts_order, import_order, train_prompts_order
from pipeline.store import Artifact, Request, Store, Work, read_table
from schemas import Prompts, Rollouts, Shaped

Config = Callable[..., RunConfig]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_model: Callable[..., Path]) -> Path:
    """A working directory with a model and two files of prompts, as the small config names them."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    write_prompts("train.jsonl", "1+1", "2+2")
    write_prompts("heldout.jsonl", "3+3")
    return tmp_path


def write_prompts(name: str, *questions: str) -> None:
    rows = [json.dumps({"question": question, "answer": "0"}) for question in questions]
    Path(name).write_text("\n".join(rows), encoding="utf-8")


class Told:
    """What was told of the stages."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def __call__(self, stage: str, event: Event) -> None:
        self.events.append((stage, event["event"]))


def rollouts_in(store: Store, name: str = "rollouts", version: int = 0) -> Artifact:
    """Two groups of two completions: rewards 0 and 1, and 1 and 1."""
    types = {name: column.dtype for name, column in Rollouts.columns().items()}
    common = {
        "completion_token_ids": [1, 2],
        "prompt_token_ids": [3],
        "behavior_logprobs": [-0.5, -0.5],
        "prompt_text": "Q",
        "completion_text": "A",
        "policy_id": "c0ffee",
        "policy_version": version,
        "source": "self",
        "logprobs_mode": "processed_logprobs",
        "engine": "by hand",
        "status": "ok",
    }
    rewards = {"a": [0.0, 1.0], "b": [1.0, 1.0]}
    rows = [
        {"group_id": group, "prompt_id": group, "sample_index": i, "reward": reward, **common}
        for group, values in rewards.items()
        for i, reward in enumerate(values)
    ]
    with store.work(Request("rollouts", "test/1", {"name": name, "version": version})) as work:
        assert isinstance(work, Work)
        work.write_table("part-00000.parquet", pl.DataFrame(rows, schema=types), Rollouts)
        return work.finish({"groups": 2})


class Hands:
    """A run's answers, and the orders that tests ask of them."""

    def __init__(self, config: RunConfig, told: Listener = quiet, *, only_look: bool = False) -> None:
        self.config, self.store = config, Store(config.store_url)
        self.processes = Processes(engine_environment())
        self.answers = looking(config) if only_look else working(config, self.processes, told)

    def ask(self, order: Order) -> Artifact:
        try:
            return only(self.answers.answer(order))
        finally:
            self.processes.close()

    def base(self) -> Artifact:
        return self.ask(import_order(self.config))

    def prompts(self, base: Artifact) -> tuple[Artifact, Artifact]:
        train = self.ask(train_prompts_order(self.config, base))
        return train, self.ask(heldout_prompts_order(self.config, base, train))

    def shape(self, iteration: int, rollouts: Artifact) -> Artifact:
        return self.ask(shape_order(self.config, iteration, rollouts))

    def replay(self, iteration: int, fresh: Part, earlier: Sequence[Artifact]) -> tuple[Part, ...]:
        try:
            return replayed(self.config, self.answers, iteration, fresh, earlier)
        finally:
            self.processes.close()


def test_base_and_prompts_are_made_once(project: Path, make_config: Config) -> None:
    told = Told()
    first = Hands(make_config(), told)
    base = first.base()
    train, heldout = first.prompts(base)
    assert told.events == []
    assert read_table(train, Prompts)["question"].to_list() == ["1+1", "2+2"]
    assert read_table(heldout, Prompts)["question"].to_list() == ["3+3"]
    assert heldout.parent("disjoint_from").id == train.id

    again = Hands(make_config(), told)
    assert again.base().id == base.id
    assert [artifact.id for artifact in again.prompts(base)] == [train.id, heldout.id]
    assert told.events == [("base model", "found"), ("training prompts", "found"), ("held-out prompts", "found")]


def test_changed_prompts_are_read_again(project: Path, make_config: Config) -> None:
    stages = Hands(make_config())
    before, _ = stages.prompts(stages.base())
    write_prompts("train.jsonl", "5+5")
    after, _ = stages.prompts(stages.base())
    assert before.id != after.id
    assert read_table(after, Prompts)["question"].to_list() == ["5+5"]


def test_an_overlap_that_was_allowed_once_is_refused_when_it_no_longer_is(project: Path, make_config: Config) -> None:
    write_prompts("heldout.jsonl", "3+3", "2+2")
    lenient = Hands(make_config({"data.allow_overlap": True}))
    _, heldout = lenient.prompts(lenient.base())
    assert heldout.summary == {"prompts": 2}
    strict = Hands(make_config())
    with pytest.raises(DataError, match=r"heldout\.jsonl: 1 questions are also training prompts"):
        strict.prompts(strict.base())


def test_only_looking_makes_nothing(project: Path, make_config: Config) -> None:
    with pytest.raises(Missing, match="base model"):
        Hands(make_config(), only_look=True).base()
    assert not (project / "runs").exists()
    base = Hands(make_config()).base()
    looking = Hands(make_config(), only_look=True)
    assert looking.base().id == base.id
    with pytest.raises(Missing, match="training prompts"):
        looking.prompts(base)


def test_only_looking_starts_no_process(project: Path, make_config: Config) -> None:
    stages = Hands(make_config(), only_look=True)
    base = Hands(make_config()).base()
    _, heldout = Hands(make_config()).prompts(base)
    with pytest.raises(Missing, match="generate 3"):
        stages.answers.answer(generate_order(stages.config, 3, base, None, heldout))
    with pytest.raises(Missing, match="shape 3"):
        stages.shape(3, rollouts_in(stages.store))
    assert not (project / "runs" / "small" / "logs").exists()


def test_a_stage_is_worked_on_in_a_process_and_found_afterwards(project: Path, make_config: Config) -> None:
    told = Told()
    stages = Hands(make_config({"train.algorithm": "reinforce"}), told)
    rollouts = rollouts_in(stages.store)
    shaped = stages.shape(0, rollouts)
    assert told.events[0] == ("shape 0", "started")
    assert told.events[-1] == ("shape 0", "finished")
    assert ("shape 0", "progress") in told.events
    assert read_table(shaped, Shaped).sort("group_id", "sample_index")["advantage"].to_list() == [-0.5, 0.5, 0.0, 0.0]
    assert shaped.parent("rollouts").id == rollouts.id
    assert (project / "runs" / "small" / "logs" / "shape-0.log").is_file()

    told.events.clear()
    assert stages.shape(0, rollouts).id == shaped.id
    assert told.events == [("shape 0", "found")]


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"model.path": "nowhere"}, UserError, r"model\.path: no directory nowhere"),
        ({"data.train.path": "nowhere.jsonl"}, UserError, r"nowhere\.jsonl: no such file or directory"),
        ({"data.heldout.path": "train.jsonl"}, DataError, r"train\.jsonl: 2 questions are also training prompts"),
        ({"data.template": "Q:"}, UserError, r"data\.template: has no \{question\} in it"),
        ({"store": "train.jsonl"}, StageFailed, r"train\.jsonl/locks/checkpoint-.*cannot be written: Not a directory"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_named(project: Path, make_config: Config, changes: Any, kind: type[UserError], said: str) -> None:
    stages = Hands(make_config(changes))
    with pytest.raises(kind, match=said):
        stages.prompts(stages.base())


REPLAYING = {"train.algorithm": "reinforce", "replay": {"iterations": 2, "share": 0.4}}


def test_earlier_rollouts_are_shaped_and_drawn_from_and_found_afterwards(project: Path, make_config: Config) -> None:
    told = Told()
    stages = Hands(make_config(REPLAYING), told)
    fresh, *earlier = (rollouts_in(stages.store, name) for name in ("new", "old", "older", "oldest"))
    shaped = stages.shape(3, fresh)
    told.events.clear()
    parts = stages.replay(3, Part(fresh, shaped), earlier)
    # 2 new groups, so 1.33 of 3.33 are replayed: 1, from the newer of the two.
    assert [part.rollouts.id for part in parts] == [earlier[0].id]
    assert parts[0].is_drawn
    table = read_table(parts[0].shaped, Shaped)
    assert (table["keep"].sum(), table.filter(drop_reason="not_drawn").height) == (2, 2)
    assert {stage for stage, _ in told.events} == {"replay 3"}

    told.events.clear()
    again = Hands(make_config(REPLAYING), told, only_look=True).replay(3, Part(fresh, shaped), earlier)
    assert [part.shaped.id for part in again] == [part.shaped.id for part in parts]
    assert told.events == []
    Hands(make_config(REPLAYING), told).replay(3, Part(fresh, shaped), earlier)
    assert set(told.events) == {("replay 3", "found")}
    with pytest.raises(Missing, match="replay 4"):
        Hands(make_config(REPLAYING), only_look=True).replay(4, Part(fresh, shaped), earlier)


def test_without_a_share_whole_artifacts_are_replayed_as_they_were_shaped(project: Path, make_config: Config) -> None:
    stages = Hands(make_config({"train.algorithm": "reinforce", "replay.iterations": 1}))
    fresh, old, older = (rollouts_in(stages.store, name) for name in ("new", "old", "older"))
    shaped, before = stages.shape(1, fresh), stages.shape(0, old)
    (part,) = stages.replay(1, Part(fresh, shaped), [old, older])
    assert (part.rollouts.id, part.shaped.id, part.is_drawn) == (old.id, before.id, False)


def test_nothing_is_replayed_unless_it_is_asked_for(project: Path, make_config: Config) -> None:
    told = Told()
    stages = Hands(make_config(), told)
    fresh = rollouts_in(stages.store)
    assert stages.replay(1, Part(fresh, fresh), [fresh]) == ()
    assert told.events == []


def test_rollouts_that_are_too_old_are_not_replayed(project: Path, make_config: Config) -> None:
    changes = {"train.algorithm": "reinforce", "replay.iterations": 1, "shape.max_age": 1}
    stages = Hands(make_config(changes))
    fresh, old = rollouts_in(stages.store, "new", version=2), rollouts_in(stages.store, "old", version=0)
    assert stages.replay(2, Part(fresh, stages.shape(2, fresh)), [old]) == ()
    assert len(stages.replay(1, Part(fresh, stages.shape(1, fresh)), [old])) == 1
