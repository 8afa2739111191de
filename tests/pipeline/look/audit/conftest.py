"""A small run with artifacts of every kind. All stages are the real ones but the engine: completions are drawn with torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from flows.chain import chain
from pipeline.compare.plan import make_plan
from pipeline.compare.table import record
from pipeline.compare.trials import Judged, Trial, Trials
from pipeline.config.reward import RewardComponent
from pipeline.config.run import RunConfig
from pipeline.evaluate.stage import evaluate
from pipeline.generate.seeds import completion_seed, select_prompts
from pipeline.revise.stage import revise
from pipeline.rewards.registry import resolve
from pipeline.run.answers import Local
from pipeline.run.process import Event, OnEvent, Reporter, each
from pipeline.run.processes import Processes
from pipeline.run.record import load_run, save_run
from pipeline.run.state import Run
from pipeline.score.stage import score
from pipeline.shape.stage import shape
from pipeline.store import Artifact, Request, Store, Work, read_table
from pipeline.store.files import sha256_of
from pipeline.store.store import load_artifact
from pipeline.train.stage import train
from schemas import Prompts, Rollouts
from schemas.manifest import Manifest, digest, sealed

WORDS = 24
STAGES = {f"pipeline.{stage.__name__}": each(stage) for stage in (shape, score, train, evaluate, revise)}
CONFIG: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "iterations": 1,
    "data": {"template": "Q: {question} A:"},
    "generate": {"prompts": 6, "samples": 4, "max_tokens": 8, "shard_groups": 4},
    "reward": {
        "components": [
            {"grader": "regex", "name": "early", "args": {"pattern": r"\bw(3|7|11|15|19)\b", "compare": False}},
            {"grader": "regex", "name": "late", "weight": 0.5, "args": {"pattern": r"\bw(4|8|12|16)\b", "compare": False}},
        ]
    },
    "train": {"algorithm": "dpo", "epochs": 2, "batch_completions": 8, "learning_rate": 0.01, "optimizer_state": "fresh"},
    "evaluate": {"samples": 2, "k": [1, 2], "bootstrap": 100},
}


class InThisProcess(Processes):
    """Work without processes of their own and without vLLM."""

    def warm_up(self, module: str, log: Path) -> None:
        pass

    def run(self, module: str, spec: Event, log: Path, on_event: OnEvent) -> Event:
        silent = Reporter(os.open(os.devnull, os.O_WRONLY))
        return draw(spec) if module == "pipeline.generate" else STAGES[module](spec, silent)


def here(config: RunConfig) -> Local:
    """Answers orders in this process."""
    return Local(Store(config.store_url), InThisProcess({}), config.directory / "logs")


def draw(spec: Event) -> Event:
    """What the generate stage would write."""
    policy = load_artifact(spec["policy"])
    model = AutoModelForCausalLM.from_pretrained(policy.path, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(policy.path)
    made = []
    for job in spec["jobs"]:
        request = Request.from_json(job["request"])
        with Store(spec["store"]).work(request) as work:
            if isinstance(work, Work):
                work = _answered(work, load_artifact(job["prompts"]), policy, model, tokenizer)
        made.append(str(work.path))
    return {"artifacts": made}


def _answered(work: Work, prompts: Artifact, policy: Artifact, model: Any, tokenizer: Any) -> Artifact:
    recipe, key = work.request.recipe, work.request.key
    selection, table = recipe["selection"], read_table(prompts, Prompts)
    chosen = table[select_prompts(len(table), selection["prompts"], selection["iteration"] or 0, selection["seed"])].to_dicts()
    components = [RewardComponent.model_validate(part) for part in recipe["reward"]]
    rows = [
        _completion(prompt, sample, recipe, key, policy, model, tokenizer, components)
        for prompt in chosen
        for sample in range(recipe["samples"])
    ]
    size = recipe["shard_groups"] * recipe["samples"]
    types = {name: column.dtype for name, column in Rollouts.columns().items()}
    types |= {component.column: pl.Float64 for component in components}
    for number, start in enumerate(range(0, len(rows), size)):
        frame = pl.DataFrame(rows[start : start + size], schema=types)
        work.write_table(f"part-{number:05d}.parquet", frame, Rollouts)
    frame = pl.DataFrame(rows, schema=types)
    return work.finish(
        {
            "groups": len(chosen),
            "completions": len(rows),
            "tokens": int(frame["completion_token_ids"].list.len().sum()),
            "prompt_tokens": int(frame["prompt_token_ids"].list.len().sum()),
            "reward_mean": frame["reward"].mean(),
            "statuses": dict(frame.group_by("status").len().sort("status").iter_rows()),
            "policy_version": policy.summary["iteration"],
        }
    )


def _completion(
    prompt: dict[str, Any], sample: int, recipe: Any, key: str, policy: Artifact, model: Any, tokenizer: Any, components: Any
) -> dict[str, Any]:
    sampling, selection = recipe["sampling"], recipe["selection"]
    seed = completion_seed(selection["seed"], recipe["purpose"], selection["iteration"], prompt["prompt_id"], sample)
    given = tokenizer(prompt["prompt_text"])["input_ids"]
    tokens, logprobs = drawn(model, given, sampling["temperature"], sampling["max_tokens"], seed)
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    scores = {part.column: float(resolve(part)(text, prompt["answer"], prompt)) for part in components}
    ended = tokens[-1] == 1
    return {
        **dict.fromkeys(Rollouts.columns()),
        "group_id": f"{prompt['prompt_id']}@{key[:8]}",
        "sample_index": sample,
        "prompt_id": prompt["prompt_id"],
        "prompt_token_ids": given,
        "completion_token_ids": tokens,
        "behavior_logprobs": logprobs,
        "prompt_text": prompt["prompt_text"],
        "completion_text": text,
        "answer": prompt["answer"],
        "finish_reason": "stop" if ended else "length",
        "reward": sum(part.weight * scores[part.column] for part in components),
        **scores,
        "policy_id": policy.id,
        "policy_version": policy.summary["iteration"],
        "source": "self",
        "seed": seed if sampling["temperature"] > 0 else None,
        **{name: sampling[name] for name in ("temperature", "top_p", "top_k", "min_p")},
        "logprobs_mode": "processed_logprobs",
        "engine": "torch",
        "status": "ok" if ended else "truncated",
    }


def drawn(model: Any, given: list[int], temperature: float, most: int, seed: int) -> tuple[list[int], list[float]]:
    """Tokens up to the end-of-sequence token, and the logprob each was drawn with."""
    random = torch.Generator().manual_seed(seed % 2**63)
    tokens: list[int] = []
    logprobs: list[float] = []
    while len(tokens) < most and 1 not in tokens:
        with torch.no_grad():
            log_p = (model(torch.tensor([[*given, *tokens]])).logits[0, -1] / (temperature or 1.0)).log_softmax(-1)
        token = int(log_p.argmax() if temperature == 0 else torch.multinomial(log_p.exp(), 1, generator=random))
        tokens.append(token)
        logprobs.append(min(float(log_p[token]), 0.0))
    return tokens, logprobs


def begun(directory: Path, **sections: Any) -> Run:
    """A run of one iteration with pairs and scores, in `run` of a directory.

    Args:
        sections: of its config, instead of those above.
    """
    model, data = directory / "model", directory / "data"
    data.mkdir(parents=True)
    _save_model(model)
    for name, questions in (("train", range(8)), ("heldout", range(8, 13))):
        lines = [json.dumps({"question": f"w{n} w{n + 3}", "answer": f"w{n + 1}"}) for n in questions]
        (data / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    paths = {name: {"path": str(data / f"{name}.jsonl")} for name in ("train", "heldout")}
    run = directory / "run"
    config = {**CONFIG, **sections, "run_dir": str(run), "model": {"path": str(model), "dtype": "float32"}}
    settings = RunConfig.model_validate({**config, "data": {**CONFIG["data"], **paths}})
    return chain(settings, here(settings), lambda now: save_run(now, run))


def make_run(directory: Path) -> Path:
    """As `begun`, compared with itself."""
    found, run = begun(directory), directory / "run"
    plan = make_plan(run, ["dpo"])
    first, last = found.iterations
    assert first.answers and first.evaluation and last.answers and last.evaluation
    trial = Trial(first.parts, last.policy, Judged(last.answers, last.evaluation))
    record(Trials(plan, Judged(first.answers, first.evaluation), {plan.variants()[0]: trial}))
    return run


def _save_model(path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = Qwen2Config(
        **sizes, **ends, intermediate_size=12, vocab_size=WORDS, max_position_embeddings=64, initializer_range=0.5
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    words = {"Q:": 2, "A:": 20} | {f"w{n}": n for n in range(WORDS) if n not in (2, 20)}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="w1", pad_token="w0").save_pretrained(path)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for one another cost more than they do on tensors as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that no test changes."""
    try:
        return make_run(tmp_path_factory.mktemp("made"))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def made_of_revisions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose completions are corrected by a rule, and which no test changes."""
    directory = tmp_path_factory.mktemp("revised")
    revise = {"pattern": r"\bw[0-9]+\b", "samples": 4, "most_change": 1.0, "reference": "{answer} w5"}
    try:
        begun(directory, revise=revise, train={**CONFIG["train"], "algorithm": "opa-dpo"})
        return directory / "run"
    finally:
        torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Copy:
    """A copy of the run that a test may change."""

    run: Path

    @property
    def store(self) -> Path:
        return self.run / "artifacts"

    def artifact(self, kind: str, policy_version: int | None = None, **recipe: Any) -> Path:
        """The first artifact of a kind whose recipe has these values, and which this version of the policy drew."""
        for path in sorted((self.store / kind).iterdir()):
            content = json.loads((path / "manifest.json").read_text("utf-8"))["content"]
            drawn = policy_version is None or content["summary"].get("policy_version") == policy_version
            if drawn and all(content["recipe"].get(name) == value for name, value in recipe.items()):
                return path
        raise AssertionError(f"no {kind} with {recipe}")

    def go_on(self, checkpoint: Path) -> Path:
        """A second run, beside this one, that begins with a checkpoint."""
        first, second = load_run(self.run).config, self.run.with_name("second")
        model = first.model.model_copy(update={"path": str(checkpoint)})
        settings = first.model_copy(update={"run_dir": str(second), "model": model})
        chain(settings, here(settings), lambda now: save_run(now, second))
        return second

    def remake(self, path: Path, change: Callable[[dict[str, Any]], None] = lambda content: None) -> None:
        """Change an artifact's content, and make its file entries, key, id and seal anew."""
        remake(path, change)

    def rewrite(self, path: Path, name: str, **columns: pl.Expr) -> None:
        """Change columns of a table file, and make the manifest anew."""
        file = path / name
        schema = pq.read_schema(file)
        table = pl.read_parquet(file).with_columns(**columns).to_arrow().cast(schema)
        pq.write_table(table, file, compression="zstd")
        remake(path)


def remake(path: Path, change: Callable[[dict[str, Any]], None] = lambda content: None) -> None:
    """As `Copy.remake`."""
    file = path / "manifest.json"
    value = json.loads(file.read_text("utf-8"))
    content = value["content"]
    change(content)
    for entry in [*content["files"], *value["provenance"]["files"]]:
        there = path / entry["path"]
        entry["bytes"], entry["sha256"] = there.stat().st_size, sha256_of(there)
    parts = {name: content[name] for name in ("kind", "stage", "recipe", "parents")}
    content["key"] = digest(parts)
    value["id"] = digest(content)
    value.pop("seal")
    file.write_text(sealed(Manifest.model_validate(value).model_dump_json(indent=2) + "\n"), encoding="utf-8")


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Iterator[Copy]:
    """A copy of the run for one test."""
    shutil.copytree(made, tmp_path / "run")
    yield Copy(tmp_path / "run")


@pytest.fixture
def copied_revisions(made_of_revisions: Path, tmp_path: Path) -> Copy:
    """A copy of the run of corrections for one test."""
    shutil.copytree(made_of_revisions, tmp_path / "run")
    return Copy(tmp_path / "run")
