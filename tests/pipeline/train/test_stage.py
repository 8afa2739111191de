"""The train stage from artifacts to a checkpoint, on a tiny random model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pipeline.algorithms.policy_gradient import PolicyGradient
from pipeline.common.errors import StageFailed, UserError
from pipeline.config.train import TrainConfig
from pipeline.run.process import Event, Reporter, StageProcess
from pipeline.store import Artifact, Work, read_table
from pipeline.store.store import load_artifact
from pipeline.train.training import learning_rate
from schemas import Metrics, Timing

Rows = list[dict[str, Any]]
Train = Callable[..., Artifact]
STEPS = 6


class Killed(BaseException):
    """Stands for the end of the process."""


class KilledAt(Reporter):
    """Ends the training when it reports a step; the resume point of that step is not written yet."""

    def __init__(self, step: int) -> None:
        super().__init__(os.open(os.devnull, os.O_WRONLY))
        self.step = step

    def progress(self, done: float, total: float, unit: str, **fields: Any) -> None:
        if done == self.step:
            raise Killed


class Noting(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: list[float] = []

    def send(self, event: str, **fields: Any) -> None:
        """What a resume point holds is told again, for whoever did not hear it."""
        assert event == "resumed" and [row["step"] for row in fields["steps"]] == list(range(len(fields["steps"])))

    def note(self, message: str) -> None:
        self.notes.append(message)

    def progress(self, done: float, total: float, unit: str, **fields: Any) -> None:
        assert (total, unit) == (STEPS, "steps")
        self.done.append(done)


def elsewhere(spec: Event, tmp_path: Path) -> Event:
    """The same work in a new store."""
    return {**spec, "store": str(tmp_path / f"store-{len(list(tmp_path.iterdir()))}")}


def scratch_of(spec: Event) -> Path:
    (path,) = Path(spec["store"]).glob("checkpoint/*/.resume")
    return path


def content(artifact: Artifact) -> tuple[str, dict[str, str]]:
    """Id and the hash of each file's bytes."""
    artifact.verify()
    return artifact.id, {file.path: file.sha256 for file in artifact.manifest.content.files}


def weights(path: Path) -> torch.Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(path / "model.safetensors").items())])


@pytest.fixture
def unbroken(bench: Any, unbroken_content: dict[str, Any], train_spec: Train, tmp_path: Path) -> tuple[Event, Any]:
    """A spec, and what training by it without interruption gives: trained once for all tests of this file."""
    spec = bench.spec(warmup_steps=2, schedule="cosine", weight_decay=0.1)
    key = str(spec["request"])
    if key not in unbroken_content:
        unbroken_content[key] = content(train_spec(elsewhere(spec, tmp_path)))
    return spec, unbroken_content[key]


@pytest.fixture(scope="module")
def unbroken_content() -> dict[str, Any]:
    return {}


def test_training_gives_a_checkpoint_that_transformers_loads(bench: Any) -> None:
    policy = bench.policy()
    checkpoint = bench.train(policy=policy)
    checkpoint.verify()
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not torch.equal(weights(checkpoint.path), weights(policy.path))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint.path)
    assert tokenizer("w3 w7 w39")["input_ids"] == [3, 7, 39]
    assert tokenizer.eos_token_id == 1
    assert model.config.use_cache
    assert (checkpoint.summary["iteration"], checkpoint.summary["steps"], checkpoint.summary["completions"]) == (1, STEPS, 24)
    assert [parent.role for parent in checkpoint.manifest.content.parents] == ["policy", "rollouts", "shaped"]
    assert not (checkpoint.path / ".resume").exists()


def test_there_is_a_row_of_metrics_and_of_timing_for_every_step(bench: Any) -> None:
    checkpoint = bench.train()
    metrics = read_table(checkpoint, Metrics)
    assert metrics["step"].to_list() == list(range(STEPS))
    assert metrics["epoch"].to_list() == [0, 0, 1, 1, 2, 2]
    assert metrics["groups"].to_list() == [4] * STEPS
    assert metrics["completions"].to_list() == [12] * STEPS
    per_epoch = metrics.group_by("epoch").agg(pl.col("tokens").sum())["tokens"].unique().to_list()
    assert per_epoch == [sum(sum(row["action_mask"] or [1] * len(row["completion_token_ids"])) for row in bench.default_rows)]
    complete = metrics.drop(
        "logprob_difference_mean", "logprob_difference_max", "clip_fraction_positive", "clip_fraction_negative"
    )
    assert complete.null_count().sum_horizontal().item() == 0
    assert read_table(checkpoint, Timing)["step"].to_list() == list(range(STEPS))


def test_on_the_first_step_the_policy_is_the_behavior_policy(bench: Any) -> None:
    metrics = read_table(bench.train(), Metrics)
    first, later = metrics.row(0, named=True), metrics[1:]
    assert [first[name] for name in ("ratio_q01", "ratio_q50", "ratio_max", "ess")] == pytest.approx([1.0] * 4, abs=1e-4)
    assert first["kl_behavior"] == pytest.approx(0, abs=1e-8)
    assert first["logprob_difference_max"] < 1e-4
    assert later["logprob_difference_mean"].null_count() == STEPS - 1
    assert later["kl_behavior"].min() > 1e-4  # type: ignore[operator]


def test_solved_completions_become_likelier_than_the_others(bench: Any) -> None:
    rollouts = bench.rollouts()
    checkpoint = bench.train(rollouts=rollouts, algorithm="reinforce", max_grad_norm=100.0)
    scored = read_scores(bench.scores(rollouts, checkpoint), bench.scores(rollouts), rollouts)
    gain = scored.group_by("solved").agg(pl.col("gain").mean()).sort("solved")["gain"].to_list()
    assert gain[1] > gain[0] + 0.5


def read_scores(after: Artifact, before: Artifact, rollouts: Artifact) -> pl.DataFrame:
    """How much likelier each completion became, and whether it was solved."""
    frames = [pl.read_parquet(artifact.tables("scores")).sort("group_id", "sample_index") for artifact in (after, before)]
    reward = pl.read_parquet(rollouts.tables("rollouts")).sort("group_id", "sample_index")["reward"]
    gain = frames[0]["logprobs"].list.sum() - frames[1]["logprobs"].list.sum()
    return pl.DataFrame({"gain": gain, "solved": reward > 0.5})


@pytest.mark.parametrize(("step", "how"), [(1, {}), (2, {}), (3, {}), (6, {}), (6, {"offload_optimizer": True})])
def test_killed_at_any_step_and_restarted_the_checkpoint_is_the_same_to_the_byte(
    step: int, how: dict[str, Any], unbroken: tuple[Event, Any], train_spec: Train
) -> None:
    spec, expected = unbroken
    spec = {**spec, "train": {**spec["train"], **how}}
    with pytest.raises(Killed):
        train_spec(spec, KilledAt(step))
    saved = [path.name for path in scratch_of(spec).glob("step-*")]
    assert saved == ([f"step-{(step - 1) // 2 * 2:08d}"] if step > 2 else [])
    noting = Noting()
    assert content(train_spec(spec, noting)) == expected
    assert noting.done == list(range((step - 1) // 2 * 2 + 1, STEPS + 1))


def test_killed_again_and_again_it_still_arrives(unbroken: tuple[Event, Any], train_spec: Train) -> None:
    spec, expected = unbroken
    for step in (3, 4, 5):
        with pytest.raises(Killed):
            train_spec(spec, KilledAt(step))
    assert content(train_spec(spec)) == expected


def test_a_half_written_resume_point_is_ignored(unbroken: tuple[Event, Any], train_spec: Train) -> None:
    spec, expected = unbroken
    with pytest.raises(Killed):
        train_spec(spec, KilledAt(3))
    half = scratch_of(spec) / ".building-00000004"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half of it")
    assert content(train_spec(spec)) == expected


def test_killed_while_the_checkpoint_is_written_it_is_written_again(
    unbroken: tuple[Event, Any], train_spec: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, expected = unbroken

    def end(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Work, "finish", end)
        train_spec(spec)
    assert content(train_spec(spec)) == expected


def test_a_real_process_that_dies_goes_on_in_another(unbroken: tuple[Event, Any], train_spec: Train, tmp_path: Path) -> None:
    spec, expected = unbroken
    log = tmp_path / "train.log"

    def end(event: Event) -> None:
        if event.get("done") == 5:
            raise Killed

    with pytest.raises(Killed):
        StageProcess("pipeline.train", log, {"OMP_NUM_THREADS": "1"}).run({"jobs": [spec]}, log, end)
    assert [path.name for path in scratch_of(spec).glob("step-*")] == ["step-00000004"]
    assert content(train_spec(spec)) == expected


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(bench: Any, train_spec: Train, tmp_path: Path) -> None:
    results = [content(train_spec(elsewhere(bench.spec(seed=seed), tmp_path))) for seed in (1, 1, 2)]
    assert results[0] == results[1]
    assert results[0][1]["model.safetensors"] != results[2][1]["model.safetensors"]


def test_a_finished_checkpoint_is_reused(bench: Any) -> None:
    first, noting = bench.train(), Noting()
    assert bench.train(noting).manifest == first.manifest
    assert noting.done == []


def test_resume_points_may_lie_differently_without_changing_the_result(bench: Any, train_spec: Train, tmp_path: Path) -> None:
    ids = {train_spec(elsewhere(bench.spec(save_every_steps=every), tmp_path)).id for every in (1, 4, 100)}
    assert len(ids) == 1


@pytest.mark.parametrize("algorithm", ["rec-oneside-nois", "p3o"])
def test_the_token_budget_changes_speed_only(algorithm: str, bench: Any, train_spec: Train, tmp_path: Path) -> None:
    specs = [bench.spec(algorithm=algorithm, tokens_per_micro_batch=budget) for budget in (16, 10_000)]
    assert specs[0]["request"] == specs[1]["request"]
    rows = [read_table(train_spec(elsewhere(spec, tmp_path)), Metrics).row(1, named=True) for spec in specs]
    for name in ("loss", "grad_norm", "kl_behavior", "ess", "entropy", "ratio_q90", "advantage_mean"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-3, abs=1e-6), name


def test_two_passes_give_the_gradient_of_one(
    bench: Any, train_spec: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = bench.spec(algorithm="grpo", tokens_per_micro_batch=32)
    one = read_table(train_spec(elsewhere(spec, tmp_path)), Metrics).row(0, named=True)
    monkeypatch.setattr(PolicyGradient, "whole_step", property(lambda self: True))
    two = read_table(train_spec(elsewhere(spec, tmp_path)), Metrics).row(0, named=True)
    assert two == pytest.approx(one, rel=1e-5, abs=1e-7)


def test_decoupled_ppo_is_ppo_where_the_proximal_policy_drew_the_data(bench: Any) -> None:
    rollouts = bench.rollouts()
    scores = {"proximal": bench.scores(rollouts)}
    decoupled = read_table(bench.train(rollouts=rollouts, scores=scores, algorithm="decoupled-ppo"), Metrics).row(1, named=True)
    ppo = read_table(bench.train(rollouts=rollouts, algorithm="rloo"), Metrics).row(1, named=True)
    for name in ("loss", "grad_norm", "kl_behavior", "ess"):
        assert decoupled[name] == pytest.approx(ppo[name], rel=1e-2, abs=1e-5), name


def test_rollouts_that_claim_to_be_of_the_parent_and_are_not_are_refused(bench: Any, rows: Rows) -> None:
    moved = bench.train(learning_rate=0.05)
    claimed = bench.rollouts([{**row, "policy_id": moved.id} for row in rows])
    with pytest.raises(
        UserError, match=r"differ from the stored ones by .* Likely causes: the rollouts are not from this checkpoint"
    ):
        bench.train(rollouts=claimed, policy=moved)


def test_how_far_stored_logprobs_may_differ_is_a_setting(bench: Any, rows: Rows) -> None:
    off = bench.rollouts([{**row, "behavior_logprobs": [value - 0.2 for value in row["behavior_logprobs"]]} for row in rows])
    with pytest.raises(UserError, match=r"by 0\.2000 nats per token on average .* more than train\.max_logprob_difference=0\.1"):
        bench.train(rollouts=off, max_logprob_difference=0.1)
    first = read_table(bench.train(rollouts=off, max_logprob_difference=0.3), Metrics).row(0, named=True)
    assert first["logprob_difference_mean"] == pytest.approx(0.2, abs=1e-4)
    unchecked = read_table(bench.train(rollouts=off, check_logprobs=False), Metrics)
    assert unchecked["logprob_difference_mean"].null_count() == STEPS


def test_rollouts_without_logprobs_train_methods_without_a_ratio_only(bench: Any, rows: Rows) -> None:
    bare = bench.rollouts([{**row, "behavior_logprobs": None} for row in rows])
    with pytest.raises(UserError, match="rec-oneside-nois needs behavior_logprobs"):
        bench.train(rollouts=bare)
    metrics = read_table(bench.train(rollouts=bare, algorithm="reinforce"), Metrics)
    absent = ("kl_behavior", "ess", "ratio_max", "ratio_q50", "logprob_difference_mean")
    assert metrics.select(absent).null_count().row(0) == (STEPS,) * 5


def test_weights_that_are_nan_are_refused(bench: Any, model_path: Callable[..., Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_path(), broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"][5, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="qwen2: the model's logprobs are not finite before the first step"):
        bench.train(policy=bench.policy(broken))


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_rows(bench: Any) -> None:
    spec = bench.spec(learning_rate=1e38, weight_decay=0.0)
    with pytest.raises(
        StageFailed, match=r"step 1: the loss is nan, in a batch of these completions: g\d sample \d.* was not taken"
    ):
        bench.train(learning_rate=1e38, weight_decay=0.0)
    with pytest.raises(UserError, match="not a finished artifact"):
        load_artifact(scratch_of(spec).parent)


def test_groups_without_signal_leave_the_weights_alone(bench: Any) -> None:
    policy, rollouts = bench.policy(), bench.rollouts()
    flat = bench.shaped(rollouts, advantage=pl.lit(0.0))
    checkpoint = bench.train(policy=policy, rollouts=rollouts, shaped=flat)
    assert torch.equal(weights(checkpoint.path), weights(policy.path))
    assert read_table(checkpoint, Metrics)["grad_norm"].to_list() == [0.0] * STEPS


def test_the_learning_rate_of_each_step_is_recorded(bench: Any) -> None:
    metrics = read_table(bench.train(schedule="linear", warmup_steps=2, learning_rate=0.008), Metrics)
    assert metrics["learning_rate"].to_list() == pytest.approx([0.004, 0.008, 0.008, 0.006, 0.004, 0.002])


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0, [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
        ("constant", 2, [0.5, 1, 1, 1]),
        ("linear", 2, [0.5, 1, 1, 0.5]),
        ("cosine", 2, [0.5, 1, 1, 0.5]),
        ("cosine", 8, [0.125, 0.25, 0.375, 0.5]),
    ],
)
def test_learning_rate_schedules_by_hand(schedule: str, warmup: int, expected: list[float]) -> None:
    config = TrainConfig.model_validate({"learning_rate": 3.0, "schedule": schedule, "warmup_steps": warmup})
    rate = learning_rate(config, steps=4)
    assert [rate(step) for step in range(4)] == pytest.approx([3 * factor for factor in expected])


def test_methods_that_may_collapse_are_warned_of(bench: Any) -> None:
    noting = Noting()
    bench.train(noting, algorithm="reinforce")
    assert len(noting.notes) == 1
    assert noting.notes[0].startswith("warning: reinforce has neither a trust region nor a regularizer")


HALF_DEAD = pl.when(pl.col("group_id").is_in(["g1", "g2", "g5", "g6"])).then(0.0).otherwise(pl.col("reward") - 1 / 3)


@pytest.mark.parametrize("algorithm", ["rec-oneside-is", "bapo"])
def test_dead_completions_are_not_computed_and_the_training_is_the_same(
    algorithm: str, bench: Any, train_spec: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Some steps are of dead groups alone: moments and weights decay in them as ever."""
    rollouts = bench.rollouts()
    settings = {"algorithm": algorithm, "batch_completions": 3, "epochs": 2, "weight_decay": 0.1, "check_logprobs": False}
    spec = bench.spec(rollouts=rollouts, shaped=bench.shaped(rollouts, advantage=HALF_DEAD), **settings)
    found = train_spec({**spec, "store": tmp_path / "live"})
    rows = read_table(found, Metrics)
    assert rows["computed"].to_list().count(0) == rows["left_out"].to_list().count(3) == 8
    assert rows.filter(pl.col("computed") == 0)["entropy"].null_count() == 8
    assert {name: found.summary[name] for name in ("completions", "computed", "left_out")} == {
        "completions": 24,
        "computed": 12,
        "left_out": 12,
    }
    monkeypatch.setattr(PolicyGradient, "dead_at", ())
    everything = train_spec({**spec, "store": tmp_path / "all"})
    other = read_table(everything, Metrics)
    assert other["left_out"].sum() == 0
    for name in ("loss", "grad_norm", "tokens", "reward_mean", "advantage_mean"):
        assert rows[name].to_list() == pytest.approx(other[name].to_list(), rel=1e-4, abs=1e-6), name
    torch.testing.assert_close(weights(found.path), weights(everything.path), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}])
@pytest.mark.parametrize(
    ("shaped", "said", "so", "steps"),
    [
        ({"keep": pl.lit(False)}, {"zero_variance": 24}, "the weights stay as they are", 0),
        ({"advantage": pl.lit(0.0)}, {"dead": 24}, "every gradient is 0", STEPS),
    ],
)
def test_a_round_with_nothing_to_train_on_leaves_the_weights_as_they_are(
    shaped: dict[str, pl.Expr], said: dict[str, int], so: str, steps: int, lora: dict[str, int] | None, bench: Any
) -> None:
    rollouts, policy, reporter = bench.rollouts(), bench.policy(), Noting()
    checkpoint = bench.train(reporter, rollouts=rollouts, shaped=bench.shaped(rollouts, **shaped), lora=lora)
    counts = ", ".join(f"{reason} {count}" for reason, count in said.items())
    assert f"rec-oneside-nois has nothing to train on ({counts}): {so}" in reporter.notes
    assert [checkpoint.summary[name] for name in ("nothing_to_train", "steps", "computed")] == [said, steps, 0]
    assert read_table(checkpoint, Metrics)["grad_norm"].to_list() == [0.0] * steps
    assert len(read_table(checkpoint, Timing)) == steps
    checkpoint.verify()
    assert torch.equal(weights(checkpoint.path), weights(policy.path))
