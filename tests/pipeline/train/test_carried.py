"""AdamW's moments that go on: two trainings are then one of twice the length, and nothing is left of what is no longer needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.config.train import TrainConfig
from pipeline.store import Artifact
from pipeline.store.store import load_artifact
from pipeline.train import carried
from pipeline.train.carried import state_of, state_request
from pipeline.train.training import learning_rate

WHOLE = {"algorithm": "reinforce", "batch_completions": 1000, "check_logprobs": False, "optimizer_state": "carry"}
"""One step an epoch, of all completions: so that the order of steps is none."""
FRESH = {**WHOLE, "optimizer_state": "fresh"}
Train = Callable[..., Artifact]


def weights(checkpoint: Artifact) -> dict[str, Tensor]:
    return load_file(checkpoint.path / "model.safetensors")


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def test_two_trainings_that_carry_are_one_of_twice_the_length(bench: Any) -> None:
    """To rounding: an epoch's groups are added up in an order of its own. A step is 0.01 at full rate."""
    first = bench.train(epochs=2, **WHOLE)
    second = bench.train(policy=first, epochs=2, **WHOLE)
    whole = bench.train(epochs=4, **WHOLE)
    fresh = bench.train(epochs=2, policy=bench.train(epochs=2, **FRESH), **FRESH)
    assert apart(weights(second), weights(whole)) < 1e-4
    assert apart(weights(fresh), weights(whole)) > 5e-3
    assert second.summary["optimizer_steps"] == 4
    assert "optimizer_steps" not in first.summary


def test_the_first_training_is_the_same_whether_its_moments_go_on_or_not(bench: Any) -> None:
    keys = {bench.spec(optimizer_state=state)["request"]["recipe"].get("optimizer_state") for state in ("carry", "fresh")}
    assert keys == {None}
    first = bench.train(epochs=1, **WHOLE)
    recipe = bench.spec(policy=first, epochs=1, **WHOLE)["request"]["recipe"]
    assert recipe["optimizer_state"] == "carry"
    assert "optimizer_state" not in bench.spec(policy=first, optimizer_state="fresh")["request"]["recipe"]
    assert "optimizer_state" not in bench.spec(policy=first, optimizer_state="carry", lora={"rank": 2})["request"]["recipe"]


def test_moments_are_kept_for_the_newest_checkpoint_only(bench: Any) -> None:
    first = bench.train(epochs=1, **WHOLE)
    state = state_of(first, bench.store)
    state.verify()
    assert state.summary == {"steps": 1}
    (path,) = state.path.glob("rank-*.safetensors")
    with safe_open(path, framework="pt") as tensors:
        assert {key.partition("|")[0] for key in tensors.keys()} == {"exp_avg", "exp_avg_sq", "step"}  # noqa: SIM118
    second = bench.train(policy=first, epochs=1, **WHOLE)
    assert second.manifest.provenance.notes["optimizer_state"] == state.id
    assert bench.store.find(state_request(first.manifest.content.key)) is None
    assert state_of(second, bench.store).summary == {"steps": 2}
    first.verify()


def test_moments_that_are_not_there_are_not_made_up(bench: Any) -> None:
    fresh = bench.train(epochs=1, **FRESH)
    with pytest.raises(UserError, match=r"moments of this checkpoint are not in the store.*Set train\.optimizer_state: fresh"):
        bench.train(policy=fresh, epochs=1, **WHOLE)
    bench.train(policy=fresh, epochs=1, **FRESH)


def test_moments_that_are_gone_are_made_again_by_the_trainings_that_led_to_them(
    bench: Any, train_spec: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second way from the first checkpoint, after the first way's third is there; killed halfway, and started again."""
    specs = [bench.spec(epochs=1, **WHOLE)]
    for _ in range(2):
        specs.append(bench.spec(policy=train_spec(specs[-1]), epochs=1, **WHOLE))
    first, second = (load_artifact(spec["policy"]) for spec in specs[1:])
    state = state_of(second, bench.store).id
    third = train_spec(specs[2])
    others = [bench.spec(policy=policy, epochs=2, **WHOLE) for policy in (first, second)]
    with pytest.raises(UserError, match="Only the run whose training made the checkpoint can"):
        train_spec(others[0])
    one, two = (train_spec({**spec, "earlier": specs[: number + 1]}) for number, spec in enumerate(others))
    assert two.manifest.provenance.notes["optimizer_state"] == state
    assert [one.summary["optimizer_steps"], two.summary["optimizer_steps"]] == [3, 4]
    for policy in (first, second):
        assert bench.store.find(state_request(policy.manifest.content.key)) is None
    assert state_of(third, bench.store).summary == {"steps": 3}

    last = {**bench.spec(policy=second, epochs=3, **WHOLE), "earlier": specs[:2]}
    keep, kept = carried.keep, []

    def killed(*given: Any) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(keep(*given))

    with monkeypatch.context() as patch:
        patch.setattr(carried, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            train_spec(last)
    assert train_spec(last).manifest.provenance.notes["optimizer_state"] == state


def test_killed_after_the_moments_were_kept_it_finishes_with_the_same(
    bench: Any, train_spec: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.train(epochs=1, **WHOLE)
    shutil.copytree(bench.store.root, tmp_path / "copy")
    spec = bench.spec(policy=first, epochs=3, **{**WHOLE, "save_every_steps": 1})
    unbroken = train_spec(spec)
    again = {**spec, "store": str(tmp_path / "copy"), "policy": str(tmp_path / "copy" / first.path.relative_to(bench.store.root))}

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.store.work.Work.write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            train_spec(again)
    assert train_spec(again).id == unbroken.id


def test_a_rate_goes_on_over_the_whole_run() -> None:
    linear = TrainConfig(learning_rate=1.0, schedule="linear", warmup_steps=2)
    first = learning_rate(linear, 5, part=(0, 2))
    second = learning_rate(linear, 5, before=5, part=(1, 2))
    whole = learning_rate(linear, 10)
    assert [*map(first, range(5)), *map(second, range(5))] == pytest.approx([whole(step) for step in range(10)])
    assert [first(0), first(1), first(2)] == [0.5, 1.0, 1.0]
    assert second(4) == pytest.approx(1 / 8)  # 8 steps after warm-up, of which this is the last
