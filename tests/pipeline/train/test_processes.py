"""Two processes and one: the same plan, losses and metrics to rounding, and resume points that either number goes on from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.common.errors import StageCrashed
from pipeline.config.train import LoraConfig
from pipeline.run.process import Event, StageProcess
from pipeline.store import Artifact, read_table
from pipeline.train.adapters import add_adapters
from pipeline.train.logits import logit_map
from pipeline.train.model import load_for_rank, load_model
from pipeline.train.team import Team
from pipeline.train.weights import hold_own_rows
from schemas import Metrics

Train = Callable[..., Artifact]
STEPS = 6


class Killed(Exception):
    """Stands for the end of the caller."""


def in_store(spec: Event, place: Path, **settings: Any) -> Event:
    """The same work in another store, done in another way."""
    return {**spec, "store": str(place), "train": {**spec["train"], **settings}}


def train_until(spec: Event, step: int, log: Path) -> Path:
    """Train in a process of its own and end it when it reports a step. Returns what it left behind."""

    def end(event: Event) -> None:
        if event.get("done") == step:
            raise Killed

    with pytest.raises(Killed):
        StageProcess("pipeline.train", log, {}).run({"jobs": [spec]}, log, end)
    (scratch,) = Path(spec["store"]).glob("checkpoint/*/.resume")
    return scratch


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.path / "model.safetensors")


def hashes(artifact: Artifact) -> dict[str, str]:
    artifact.verify()
    return {file.path: file.sha256 for file in artifact.manifest.content.files}


def assert_same_training(found: Artifact, expected: Artifact) -> None:
    """Metrics and weights are equal to rounding, which six steps at a large learning rate let grow."""
    rows, expected_rows = (read_table(artifact, Metrics) for artifact in (found, expected))
    for row, expected_row in zip(rows.to_dicts(), expected_rows.to_dicts(), strict=True):
        for name, value in expected_row.items():
            assert (row[name] is None) == (value is None), name
            if value is not None:
                assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (name, row["step"])
    for name, tensor in weights(expected).items():
        torch.testing.assert_close(weights(found)[name], tensor, rtol=1e-3, atol=1e-4)


def ranks(artifact: Artifact) -> list[tuple[int, int]]:
    return [(stretch["from_step"], stretch["processes"]) for stretch in artifact.manifest.provenance.notes["ranks"]]


@pytest.mark.parametrize(
    "algorithm", ["rec-oneside-is", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bapo", "m2po"))]
)
def test_two_processes_train_as_one(algorithm: str, bench: Any, train_spec: Train, tmp_path: Path) -> None:
    spec = bench.spec(algorithm=algorithm, tokens_per_micro_batch=40)
    one = train_spec(in_store(spec, tmp_path / "one"))
    two = train_spec(in_store(spec, tmp_path / "two", processes=2))
    assert two.manifest.content.key == one.manifest.content.key
    assert (ranks(one), ranks(two)) == ([(0, 1)], [(0, 2)])
    assert_same_training(two, one)


def of_kind(model: Path, place: Path, kind: torch.dtype) -> Path:
    """A copy of a model whose weights are bf16 numbers, in files of a type."""
    shutil.copytree(model, place)
    file = place / "model.safetensors"
    save_file({name: tensor.bfloat16().to(kind) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    return place


@pytest.mark.parametrize("name", ["tied", "gemma2"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, targets=("q_proj", "down_proj"))])
def test_a_rank_holds_the_values_of_its_rows_and_makes_the_same_of_them(
    name: str, lora: LoraConfig | None, bench: Any, tmp_path: Path
) -> None:
    """Of two ranks, the first. What belongs to the other one is not read, so it may be anything."""
    path = of_kind(bench.model_path(name), tmp_path / "bf16", torch.bfloat16)
    whole, model = load_model(path, trust_remote_code=False), load_for_rank(path, trust_remote_code=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert logit_map(model) == logit_map(whole)
    for (buffer_name, buffer), (_, expected) in zip(model.named_buffers(), whole.named_buffers(), strict=True):
        assert torch.equal(buffer, expected) and buffer.dtype == expected.dtype, buffer_name
    hold_own_rows(model, "float32", Team(device=torch.device("cpu"), rank=0, size=2))
    if lora:
        for one in (model, whole):
            add_adapters(one, lora, 7)
    for (parameter_name, parameter), (_, expected) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        rows = len(parameter) if "lora" in parameter_name else -(-len(parameter) // 2)
        assert parameter.dtype == torch.float32 and torch.equal(parameter[:rows], expected[:rows]), parameter_name


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), [("tied", {}), ("tied", {"lora": {"rank": 2}}), ("gemma2", {})])
def test_ranks_that_read_their_own_rows_of_a_bf16_file_make_the_bytes_of_the_whole_model(
    name: str, how: dict[str, Any], bench: Any, train_spec: Train, tmp_path: Path
) -> None:
    """The same numbers in fp32 files, of which nothing has to be widened."""
    made = []
    for kind in (torch.bfloat16, torch.float32):
        place = of_kind(bench.model_path(name), tmp_path / str(kind), kind)
        spec = bench.spec(policy=bench.policy(place), check_logprobs=False, epochs=1, **how)
        made.append(train_spec(in_store(spec, tmp_path / f"{kind} store", processes=2)))
    one, two = (artifact.path / "model.safetensors" for artifact in made)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rec-oneside-is", "bapo"])
def test_ranks_agree_on_what_is_dead(algorithm: str, bench: Any, train_spec: Train, tmp_path: Path) -> None:
    """Steps of dead groups alone, of live ones alone, and of one live group, which one rank has to itself."""
    rollouts = bench.rollouts()
    dead = pl.col("group_id").is_in(["g1", "g2", "g5", "g6"])
    shaped = bench.shaped(rollouts, advantage=pl.when(dead).then(0.0).otherwise(pl.col("reward") - 1 / 3))
    for completions in (3, 6):
        settings = {"algorithm": algorithm, "batch_completions": completions, "epochs": 2, "check_logprobs": False}
        spec = bench.spec(rollouts=rollouts, shaped=shaped, **settings)
        one, two = (train_spec(in_store(spec, tmp_path / f"{n}-{completions}", processes=n)) for n in (1, 2))
        assert read_table(two, Metrics)["left_out"].sum() == 24
        assert_same_training(two, one)


@pytest.mark.slow
def test_a_pass_without_gradient_leaves_no_old_weights_behind(
    bench: Any, rows: list[dict[str, Any]], train_spec: Train, tmp_path: Path
) -> None:
    """Where the first step has nothing that the parent drew, one more pass without gradient is made before it is taken."""
    settings = {"epochs": 1, "batch_completions": 3, "learning_rate": 0.05}
    probing = bench.spec(rollouts=bench.rollouts(rows), check_logprobs=False, **settings)
    seen = read_table(train_spec(in_store(probing, tmp_path / "order")), Metrics)
    assert len(seen) == 8
    for last in range(8):
        mixed = [{**row, "policy_id": "base" if row["group_id"] == f"g{last}" else "another"} for row in rows]
        spec = bench.spec(rollouts=bench.rollouts(mixed), **settings)
        one = train_spec(in_store(spec, tmp_path / f"one-{last}"))
        if not read_table(one, Metrics)["logprob_difference_mean"].drop_nulls().is_empty():
            break
    two = train_spec(in_store(spec, tmp_path / "two", processes=2))
    assert_same_training(two, one)


@pytest.mark.slow
def test_another_number_of_processes_goes_on_where_one_was_killed(bench: Any, train_spec: Train, tmp_path: Path) -> None:
    policy = bench.policy(bench.model_path("tied"))
    spec = bench.spec(
        policy=policy, algorithm="reinforce", warmup_steps=2, schedule="cosine", weight_decay=0.1, check_logprobs=False
    )
    one = train_spec(in_store(spec, tmp_path / "one"))
    for before, after in ((2, 1), (1, 2)):
        store = tmp_path / f"{before}-{after}"
        scratch = train_until(in_store(spec, store, processes=before), 5, tmp_path / "log")
        assert len(list(scratch.glob("step-00000004/rank-*"))) == before
        found = train_spec(in_store(spec, store, processes=after))
        assert ranks(found) == [(0, before), (4, after)]
        assert_same_training(found, one)
        assert "lm_head.weight" not in weights(found)
        model = AutoModelForCausalLM.from_pretrained(found.path)
        assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.slow
@pytest.mark.parametrize("offload", [False, True])
def test_killed_and_restarted_two_processes_give_the_same_bytes(
    offload: bool, bench: Any, train_spec: Train, tmp_path: Path
) -> None:
    """Wherever AdamW's moments lie."""
    spec = bench.spec(processes=2)
    unbroken = train_spec(in_store(spec, tmp_path / "unbroken"))
    broken = in_store(spec, tmp_path / "broken", offload_optimizer=offload)
    train_until(broken, 3, tmp_path / "log")
    train_until(broken, 5, tmp_path / "log")
    found = train_spec(broken)
    assert ranks(found) == [(0, 2), (2, 2), (4, 2)]
    assert (found.id, hashes(found)) == (unbroken.id, hashes(unbroken))


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_training_and_says_so(bench: Any, tmp_path: Path) -> None:
    spec, log = in_store(bench.spec(processes=2, epochs=200), tmp_path / "store"), tmp_path / "log"

    def kill_rank_1(event: Event) -> None:
        if event.get("done") == 3:
            (found,) = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if is_rank_1(path, log)]
            os.kill(found, signal.SIGKILL)

    with pytest.raises(StageCrashed, match=r"pipeline.train was ended by SIGKILL[^|]*rank-1.log"):
        StageProcess("pipeline.train", log, {"NAME_OF_TEST": str(log)}).run({"jobs": [spec]}, log, kill_rank_1)


def is_rank_1(environment: Path, test: Path) -> bool:
    try:
        variables = environment.read_bytes().split(b"\0")
    except OSError:
        return False
    return b"RANK=1" in variables and f"NAME_OF_TEST={test}".encode() in variables


@pytest.mark.slow
def test_torchrun_may_start_the_ranks(bench: Any, train_spec: Train, tmp_path: Path) -> None:
    spec, file = in_store(bench.spec(epochs=1), tmp_path / "two"), tmp_path / "spec.json"
    file.write_text(json.dumps({"jobs": [spec]}))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pipeline.train", str(file)]
    for _ in range(2):  # the second time it is there
        ended = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=300, check=True)
        assert json.loads(ended.stdout.splitlines()[-1])["event"] == "result"
    found = train_spec(spec)
    assert ranks(found) == [(0, 2)]
    assert_same_training(found, train_spec(in_store(spec, tmp_path / "one")))
