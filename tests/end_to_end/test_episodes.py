"""A real run with an environment: what is stored is what was drawn, and it is the same however it came about."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.environments.arithmetic import value_of
from pipeline.run.record import load_run
from pipeline.store import Artifact, read_table
from schemas import Rollouts, Shaped, Turns
from schemas.rollouts import ends_episode

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PER_TOKEN = 1e-4
"""Largest difference of one logprob, nats."""
CALLER: dict[str, Any] = {
    "name": "episodes",
    "model": {"path": str(ROOT / "data/caller")},
    "data": {
        "train": {"path": str(ROOT / "data/calculator/train.parquet"), "prompt_id": "prompt_id", "limit": 64},
        "heldout": {"path": str(ROOT / "data/calculator/heldout.parquet"), "prompt_id": "prompt_id", "limit": 16},
    },
    "environment": {"name": "calculator", "max_turns": 4},
    "generate": {"prompts": 8, "samples": 8, "temperature": 1.0, "max_tokens": 32, "shard_groups": 2},
    "train": {"epochs": 2, "batch_completions": 16, "learning_rate": 1e-4},
}


@pytest.fixture(scope="module")
def played(served: Any, write_config: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run's directory, and the command's arguments for another directory."""
    home = tmp_path_factory.mktemp("episodes")
    config, run = write_config(home / "episodes.yaml", **CALLER), home / "run"
    ended = served("run", config, "--set", f"run_dir={run}")
    assert ended.status == 0, ended.err
    return run, lambda directory: ("run", config, "--set", f"run_dir={directory}")


def answers_of(run: Path, iteration: int = 0) -> list[Artifact]:
    answers = load_run(run).iterations[iteration].answers
    assert answers is not None and answers.rollouts and answers.sampled
    return [answers.rollouts, answers.sampled]


def without_rollouts(run: Path, directory: Path) -> Path:
    """A copy that lacks what iteration 0 generated."""
    shutil.copytree(run, directory)
    for artifact in answers_of(run):
        shutil.rmtree(directory / artifact.path.relative_to(run))
    return directory


def test_drawn_logprobs_are_the_models_over_the_whole_episode(played: Any) -> None:
    run, _ = played
    model = AutoModelForCausalLM.from_pretrained(load_run(run).iterations[0].policy.path, dtype=torch.float32).eval()
    rows = [row for artifact in answers_of(run) for row in read_table(artifact, Rollouts).to_dicts()]
    several = [row for row in rows if row["action_mask"] is not None]
    assert 0.05 * len(rows) < len(several) < len(rows)
    for row in rows:
        prompt, completion = row["prompt_token_ids"], row["completion_token_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        found = logits.log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]
        drawn = torch.tensor(row["action_mask"] or [True] * len(completion))
        stored = torch.tensor(row["behavior_logprobs"])
        assert float((found - stored).abs()[drawn].max()) < PER_TOKEN
        assert not stored[~drawn].any()


def test_the_calculator_says_what_the_call_is_worth(played: Any) -> None:
    run, _ = played
    rollouts = answers_of(run)[1]
    tools = read_table(rollouts, Turns).filter(pl.col("who") == "tool", pl.col("status") == "ok")
    rows = {(row["group_id"], row["sample_index"]): row for row in read_table(rollouts, Rollouts).to_dicts()}
    texts = [rows[group, sample]["completion_text"] for group, sample in tools.select("group_id", "sample_index").rows()]
    assert texts
    for text in texts:
        call, _, rest = text.removeprefix("[").partition("]")
        assert rest.startswith(value_of(call))


def test_a_deep_audit_plays_the_episodes_again_and_is_sound(played: Any, served: Any) -> None:
    run, _ = played
    ended = served("audit", run, "--deep")
    assert ended.status == 0, ended.out + ended.err


def test_a_second_run_and_two_engines_give_the_same_bytes(played: Any, served: Any, tmp_path: Path, ids: Any) -> None:
    run, again = played
    for number, changes in enumerate([(), ("--set", "engine.replicas=2")]):
        directory = without_rollouts(run, tmp_path / f"run{number}")
        ended = served(*again(directory), *changes)
        assert ended.status == 0, ended.err
        assert ids(directory) == ids(run)


def test_killed_while_episodes_are_played_it_goes_on_to_the_same_bytes(
    played: Any, served: Any, tmp_path: Path, ids: Any
) -> None:
    run, again = played
    directory = without_rollouts(run, tmp_path / "run")
    started = served.start(*again(directory))
    started.until(lambda: list(directory.glob("artifacts/rollouts/*/turns-*.parquet")) != [])
    started.process.kill()
    started.wait()
    assert started.left_over() == {}
    ended = served(*again(directory))
    assert ended.status == 0, ended.err
    assert ids(directory) == ids(run)


CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'Q:' + m.content + '=' }}{% elif m.role == 'assistant' %}"
    "{{ m.content + '<eos>' }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def test_a_run_whose_turns_are_rows(served: Any, write_config: Callable[..., Path], tmp_path: Path) -> None:
    """The calculator behind a chat template that is rendered anew for each turn: rows, advantages, pass@1 and a deep audit."""
    model = tmp_path / "model"
    shutil.copytree(ROOT / "data/caller", model)
    (model / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    changes = {
        "model": {"path": str(model)},
        "data": {**CALLER["data"], "template": "{question}", "chat": True},
        "environment": {**CALLER["environment"], "history": "rendered"},
    }
    config, run = write_config(tmp_path / "rows.yaml", **{**CALLER, **changes}), tmp_path / "run"
    ended = served("run", config, "--set", f"run_dir={run}")
    assert ended.status == 0, ended.err
    step = load_run(run).iterations[0]
    rows = read_table(answers_of(run)[0], Rollouts)
    assert step.shaped is not None and step.evaluation is not None
    fates = rows.join(read_table(step.shaped, Shaped), on=["group_id", "sample_index"])
    assert len(fates) == len(rows) > 64 == len(rows.filter(ends_episode()))
    each = fates.group_by("group_id", pl.col("sample_index") // 4).agg(pl.col("advantage", "reward").n_unique())
    assert each["advantage"].max() == each["reward"].max() == 1 and fates["advantage"].abs().max() > 0
    heldout = read_table(answers_of(run)[1], Rollouts).filter(ends_episode())
    assert step.evaluation.summary["pass_at"]["1"]["value"] == pytest.approx(float((heldout["reward"] >= 1).mean()))
    ended = served("audit", run, "--deep")
    assert ended.status == 0, ended.out + ended.err
