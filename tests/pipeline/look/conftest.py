"""A run of two iterations, written by hand, and the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from flows.cli import answer
from pipeline.config.run import RunConfig
from pipeline.run.record import save_run
from pipeline.run.state import Answers, Iteration, Run
from pipeline.store import Artifact, Request, Store, Work
from schemas import Evaluation, Prompts, Rollouts, Shaped, Turns
from schemas.table import Table

ESCAPES = "\x1b[2J\x1b]0;title\x07\u202etxt.exe\x9b31m 3"
"""A completion that would clear the screen, name the window and turn the text around."""
HOSTILE_RESULT = f"1\npolicy, reward 9\n<script>alert(1)</script>{ESCAPES}"
"""What a tool says that would pass for the policy, and run a script."""
Rows = list[dict[str, Any]]


@pytest.fixture
def rollbook(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """rollbook("show", path): status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*command: object) -> tuple[int, str, str]:
        status = answer([str(argument) for argument in command])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def finished(tmp_path: Path, make_config: Callable[..., RunConfig]) -> Path:
    """The directory of a run of one iteration: base, rollouts of two prompts, shaped, a checkpoint, two evaluations."""
    store = Store(tmp_path / "run" / "artifacts")
    base = made(store, "checkpoint", "import/1", {"tokenizer.json": tokenizer().to_str()}, iteration=0)
    question = {"question": "q", "answer": "2", "prompt_text": "Q", "metadata": None}
    train, heldout = (
        made(store, "prompts", "prompts/1", {"prompts.parquet": (Prompts, [{**question, "prompt_id": name}])}, name=name)
        for name in ("train", "heldout")
    )
    policies, steps = [base], []
    for number in (0, 1):
        policy = policies[-1]
        parents = {"policy": policy, "prompts": heldout}
        sampled = made(store, "rollouts", "generate/1", shards(policy, number, "held"), parents, purpose="sampled")
        figures: Rows = [
            {"prompt_id": "held-0", "mode": "sampled", "sample_index": 0, "reward": 1.0 - number, "solved": not number}
        ]
        rows = [{**row, "completion_tokens": 3, "status": "ok"} for row in figures]
        judged = made(
            store, "evaluation", "evaluate/1", {"evaluation.parquet": (Evaluation, rows)}, {"policy": policy, "sampled": sampled}
        )
        step = Iteration(number, policy, Answers(sampled, None, None), judged)
        steps.append(step)
        if number == 0:
            parents = {"policy": policy, "prompts": train}
            rollouts = made(store, "rollouts", "generate/1", shards(policy, 0, "train"), parents, purpose="train")
            kept = {"weight": 1.0, "keep": True, "drop_reason": None}
            advantages: Rows = [
                {"group_id": f"train-{group}@01234567", "sample_index": sample, "advantage": 0.5 - sample, **kept}
                for group in (0, 1)
                for sample in (0, 1)
            ]
            shaped = made(store, "shaped", "shape/1", {"part-00000.parquet": (Shaped, advantages)}, {"rollouts": rollouts})
            trained = made(store, "checkpoint", "train/1", {"config.json": "{}"}, {"policy": policy, "shaped": shaped}, epochs=2)
            step.answers, step.shaped, step.checkpoint = Answers(sampled, None, rollouts), shaped, trained
            policies.append(trained)
    save_run(Run(make_config(), train, heldout, steps), tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def played(tmp_path: Path) -> tuple[Artifact, Artifact]:
    """A checkpoint, and rollouts of one episode: a call, what a hostile tool says, an answer."""
    store = Store(tmp_path / "store")
    policy = made(store, "checkpoint", "import/1", {"tokenizer.json": tokenizer().to_str()}, iteration=0)
    files = shards(policy, 0, "train")
    row = files["part-00000.parquet"][1][0]
    said = [("[1+0]", "policy", None, 0.5, "ok"), (HOSTILE_RESULT, "tool", "calc\nulator\x1b[31m", None, "tool_error")]
    said.append(("1", "policy", None, 1.0, "ok"))
    text, turns = "".join(part for part, *_ in said), []
    for number, (part, who, name, reward, status) in enumerate(said):
        start = sum(turn["length"] for turn in turns)
        turns.append(
            {"group_id": row["group_id"], "sample_index": 0, "turn": number, "start": start, "length": len(part.encode())}
            | {"who": who, "name": name, "reward": reward, "status": status}
        )
    mask = [turn["who"] == "policy" for turn in turns for _ in range(turn["length"])]
    row |= {"completion_text": text, "completion_token_ids": list(text.encode()), "action_mask": mask}
    row |= {"behavior_logprobs": [-0.5 * drawn for drawn in mask]}
    files["turns-00000.parquet"] = (Turns, turns)
    return policy, made(store, "rollouts", "generate/1", files, {"policy": policy}, purpose="train")


@pytest.fixture
def parts(finished: Path) -> dict[str, Path]:
    """Places of the run's artifacts: rollouts, shaped, sampled 0, checkpoint 0, ..."""
    record = json.loads((finished / "run.json").read_text(encoding="utf-8"))
    found = {}
    for step in record["iterations"]:
        for role, reference in step.items():
            if isinstance(reference, dict) and "path" in reference:
                found[f"{role} {step['iteration']}"] = finished / reference["path"]
    return found | {"rollouts": found["rollouts 0"], "shaped": found["shaped 0"]}


def shards(policy: Artifact, version: int, name: str) -> dict[str, tuple[type[Table], Rows]]:
    """Two files of one group of two completions: `1` with reward 1, and something else with reward 0."""
    files = {}
    for group in (0, 1):
        rows = []
        for sample in (0, 1):
            text = "1" if sample == 0 else (ESCAPES if group else "two words")
            rows.append(
                {
                    "group_id": f"{name}-{group}@{version}1234567",
                    "sample_index": sample,
                    "prompt_id": f"{name}-{group}",
                    "prompt_token_ids": [81],
                    "completion_token_ids": list(text.encode()),
                    "behavior_logprobs": [-0.5 * (version + 1)] * len(text.encode()),
                    "prompt_text": f"Q{group}",
                    "completion_text": text,
                    "answer": "1",
                    "reward": 1.0 - sample,
                    "reward_exact_match": 1.0 - sample,
                    "policy_id": policy.id,
                    "policy_version": version,
                    "source": "self",
                    "logprobs_mode": "processed_logprobs",
                    "engine": "by hand",
                    "status": "truncated" if group and sample else "ok",
                }
            )
        files[f"part-{group:05d}.parquet"] = (Rollouts, rows)
    return files


def made(
    store: Store,
    kind: Any,
    stage: str,
    files: dict[str, Any],
    parents: dict[str, Artifact] | None = None,
    **recipe: Any,
) -> Artifact:
    """An artifact of tables (type and rows) and texts."""
    request = Request(kind, stage, recipe, tuple(parent.as_parent(role) for role, parent in (parents or {}).items()))
    with store.work(request) as work:
        assert isinstance(work, Work)
        rows = 0
        for name, content in files.items():
            if isinstance(content, str):
                (work.path / name).write_text(content, encoding="utf-8")
                continue
            table, values = content
            rows += len(values)
            types = {column: declared.dtype for column, declared in table.columns().items()}
            extra = {column: pl.Float64 for column in values[0] if column not in types}
            frame = pl.DataFrame([{**dict.fromkeys(types), **row} for row in values], schema=types | extra)
            work.write_table(name, frame, table)
        return work.finish({"completions": rows, "iteration": recipe.get("iteration", 1)})


def tokenizer() -> Tokenizer:
    """Every byte is a token."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    shown = {byte: chr(byte) for byte in printable}
    rest = (byte for byte in range(256) if byte not in printable)
    shown |= {byte: chr(256 + number) for number, byte in enumerate(rest)}
    assert set(shown.values()) == set(letters)
    made_of = Tokenizer(models.WordLevel({letter: byte for byte, letter in shown.items()}, unk_token=shown[63]))
    made_of.decoder = decoders.ByteLevel()
    return made_of
