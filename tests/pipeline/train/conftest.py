"""Tiny random models, rollouts whose stored logprobs are really theirs, and everything the train stage asks for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, PhiConfig, PreTrainedTokenizerFast, Qwen2Config

from pipeline.algorithms import resolve
from pipeline.config.run import RunConfig
from pipeline.run.parts import Part
from pipeline.run.process import Event, Reporter
from pipeline.score.order import score_request
from pipeline.score.stage import score
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.store import load_artifact
from pipeline.train.batch import Batch, Flat
from pipeline.train.layout import open_snapshot
from pipeline.train.model import Policy
from pipeline.train.order import train_request
from pipeline.train.snapshot import TrainingCompletion, TrainingGroup, TrainingSnapshot
from pipeline.train.stage import train
from pipeline.train.tree import PackedRow
from schemas import Rollouts, Shaped

VOCABULARY = 40
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": VOCABULARY}
COMMON = {"max_position_embeddings": 64, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
MODELS = {
    "qwen2": Qwen2Config(**SIZES, **COMMON, num_key_value_heads=1, tie_word_embeddings=False),
    "tied": Qwen2Config(**SIZES, **COMMON, num_key_value_heads=2, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, **COMMON),
    "phi": PhiConfig(**SIZES, **COMMON),
    "gemma2": Gemma2Config(
        **SIZES, **COMMON, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0, query_pre_attn_scalar=8
    ),
}
"""Grouped key/value heads; weights shared with the embedding; learned positions and LayerNorm; a head with a bias; capped logits,
and a buffer that is rounded where the model is not in fp32."""

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for one another cost more than they do on tensors as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """model_path(name, **changes of its config): a directory with a random model and a tokenizer."""

    def save(name: str, **changes: Any) -> Path:
        torch.manual_seed(0)
        config = type(MODELS[name]).from_dict({**MODELS[name].to_dict(), **changes})
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        path = tmp_path_factory.mktemp(name)
        model.save_pretrained(path)
        tokenizer().save_pretrained(path)
        return path

    once = cache(save)
    return lambda name="qwen2", **changes: once(name, **changes)


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{n}": n for n in range(VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="w1", pad_token="w0")


@pytest.fixture
def make_policy(model_path: Callable[..., Path]) -> Callable[..., Policy]:
    """make_policy(name, double=False, **settings): the policy, in fp64 if asked for."""

    def make(
        name: str = "qwen2", *, double: bool = False, dtype: str = "float32", checkpointing: bool = False, **changes: Any
    ) -> Policy:
        policy = Policy(model_path(name, **changes), dtype, trust_remote_code=False, activation_checkpointing=checkpointing)
        if double:
            policy.model.double()
        return policy

    return make


@pytest.fixture(scope="session")
def add_gradient() -> Callable[..., Tensor]:
    """add_gradient(policy, batch, loss_of(flat, logprobs, entropy)): the loss of a batch, added up over its chunks.

    Its gradient is added to what the weights have, as a training step does.
    """

    def add(policy: Policy, batch: Batch, loss_of: Callable[[Flat, Tensor, Tensor], Tensor]) -> Tensor:
        cut, total = policy.cut(batch), torch.zeros(())
        hidden = policy.hidden(batch, cut)
        projection = policy.projection(hidden, cut)
        for chunk in cut.chunks:
            loss = loss_of(batch.flat.of(chunk), *projection(chunk))
            torch.autograd.backward(loss)
            total = total + loss.detach()
        projection.backward(hidden)
        return total

    return add


@pytest.fixture(scope="session")
def logprobs_alone(model_path: Callable[..., Path]) -> Callable[..., list[float]]:
    """logprobs_alone(name, prompt, completion, temperature): from the model's own logits on that one sequence."""
    load = cache(lambda name: AutoModelForCausalLM.from_pretrained(model_path(name), dtype=torch.float32).eval())

    def score(name: str, prompt: Sequence[int], completion: Sequence[int], temperature: float) -> list[float]:
        with torch.no_grad():
            logits = load(name)(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
        log_p = (logits[len(prompt) - 1 : -1] / (temperature or 1.0)).log_softmax(-1)
        return log_p.gather(-1, torch.tensor(list(completion))[:, None])[:, 0].clamp(max=0).tolist()

    return score


@pytest.fixture(scope="session")
def make_group() -> Callable[..., TrainingGroup]:
    """make_group(prompt length, completion lengths, number): a group with random tokens, logprobs and advantages."""

    def make(prompt: int, lengths: Sequence[int], number: int = 0, *, masked: bool = False) -> TrainingGroup:
        random = np.random.default_rng([number, prompt, *lengths])
        completions = [
            TrainingCompletion(
                group_id=f"g{number}",
                sample_index=sample,
                tokens=random.integers(0, VOCABULARY, length).astype(np.int32),
                behavior=-random.exponential(2.0, length).astype(np.float32),
                mask=random.random(length) < 0.7 if masked else np.ones(length, np.bool_),
                proximal=-random.exponential(2.0, length).astype(np.float32),
                reference=-random.exponential(2.0, length).astype(np.float32),
                advantage=float(random.normal()),
                weight=float(random.choice([0.5, 1.0, 2.0])),
                reward=float(sample % 2),
                temperature=float(random.choice([0.7, 1.0])),
            )
            for sample, length in enumerate(lengths)
        ]
        return TrainingGroup(random.integers(0, VOCABULARY, prompt).astype(np.int32), completions)

    return make


@pytest.fixture(scope="session")
def row_of() -> Callable[[TrainingGroup], PackedRow]:
    return lambda group: PackedRow.of(group, group.completions)


@pytest.fixture(scope="session")
def rows(logprobs_alone: Callable[..., list[float]]) -> Rows:
    """Rollouts of 8 groups of 3 by the model "qwen2", odd groups at temperature 0.8; g4 has tokens of a tool."""
    random = np.random.default_rng(0)
    found = []
    for number in range(8):
        prompt = random.integers(2, VOCABULARY, 3 + number % 4).tolist()
        temperature = 0.8 if number % 2 else 1.0
        for sample in range(3):
            tokens = random.integers(1, VOCABULARY, 2 + int(random.integers(0, 7))).tolist()
            logprobs = logprobs_alone("qwen2", prompt, tokens, temperature)
            mask = [place != 1 for place in range(len(tokens))] if number == 4 else None
            if mask:
                logprobs[1] = -77.0
            found.append(
                {
                    **dict.fromkeys(Rollouts.columns()),
                    "group_id": f"g{number}",
                    "sample_index": sample,
                    "prompt_id": f"p{number}",
                    "prompt_token_ids": prompt,
                    "completion_token_ids": tokens,
                    "behavior_logprobs": logprobs,
                    "action_mask": mask,
                    "prompt_text": "",
                    "completion_text": "",
                    "reward": float((number + sample) % 3 == 0),
                    "policy_id": "base",
                    "policy_version": 0,
                    "source": "self",
                    "temperature": temperature,
                    "top_p": 1.0,
                    "top_k": 0,
                    "min_p": 0.0,
                    "logprobs_mode": "processed_logprobs",
                    "engine": "none",
                    "status": "ok",
                }
            )
    return found


@dataclass(frozen=True)
class Bench:
    """A store, and what to put into it."""

    store: Store
    default_rows: Rows
    model_path: Callable[..., Path]
    make_config: Callable[..., RunConfig]

    def policy(self, path: Path | None = None) -> Artifact:
        """A model as a checkpoint artifact."""
        path = path or self.model_path()
        return self._artifact(Request("checkpoint", "import/1", {"path": str(path)}), (), None, {"iteration": 0}, path)

    def rollouts(self, rows: Rows | None = None, *, files: int = 2, backwards: bool = False, **recipe: Any) -> Artifact:
        """Rollouts, whole groups to a file. `backwards`: files, and rows within them, the other way round.

        The policy "base" stands for the one that `policy` gives.
        """
        rows = self.default_rows if rows is None else rows
        rows = [{**row, "policy_id": self.policy().id} if row["policy_id"] == "base" else row for row in rows]
        ids = list(dict.fromkeys(row["group_id"] for row in rows))
        parts = [[row for row in rows if ids.index(row["group_id"]) * files // len(ids) == part] for part in range(files)]
        if backwards:
            parts = [part[::-1] for part in parts[::-1]]
        recipe |= {"rows": str(rows), "files": files, "backwards": backwards}
        tokens = sum(len(row["completion_token_ids"]) for row in rows)
        summary = {"groups": len(ids), "completions": len(rows), "tokens": tokens}
        return self._artifact(Request("rollouts", "generate/1", recipe), parts, Rollouts, summary)

    def shaped(self, rollouts: Artifact, *, keep: pl.Expr | None = None, **columns: pl.Expr) -> Artifact:
        """All rows kept with weight 1 and the reward minus its group's mean, unless told otherwise."""
        frame = pl.concat([pl.read_parquet(path) for path in rollouts.tables("rollouts")])
        reward = pl.col("reward").fill_null(0)
        keep = pl.lit(True) if keep is None else keep
        columns = {"advantage": reward - reward.mean().over("group_id"), "weight": pl.lit(1.0), **columns}
        frame = frame.select(
            "group_id",
            "sample_index",
            *(expression.cast(pl.Float32).alias(name) for name, expression in columns.items()),
            keep=keep,
            drop_reason=pl.when(~keep).then(pl.lit("zero_variance")),
        )
        recipe = {"rows": str(frame.rows())}
        request = Request("shaped", "shape/1", recipe, (rollouts.as_parent("rollouts"),))
        return self._artifact(request, [frame.rows(named=True)], Shaped, {})

    def scores(self, rollouts: Artifact, checkpoint: Artifact | None = None) -> Artifact:
        """Logprobs of the rollouts under a checkpoint."""
        checkpoint = checkpoint or self.policy()
        config = self.make_config({"model.dtype": "float32"})
        request = score_request(config, rollouts, checkpoint)
        spec = {"request": request.to_json(), "rollouts": str(rollouts.path), "checkpoint": str(checkpoint.path)}
        spec |= {"train": config.train.model_dump(mode="json")}
        result = score({**spec, "store": str(self.store.root), "trust_remote_code": False}, silent())
        return load_artifact(result["artifact"])

    def snapshot(
        self,
        rollouts: Artifact,
        shaped: Artifact | None = None,
        algorithm: str = "rec-oneside-is",
        replayed: Sequence[Part] = (),
        **scores: Artifact,
    ) -> TrainingSnapshot:
        scratch = Path(tempfile.mkdtemp(dir=self.store.root))
        parts = [Part(rollouts, shaped or self.shaped(rollouts), scores), *replayed]
        return open_snapshot(scratch, parts, resolve(algorithm), self.policy().id)

    def spec(
        self,
        rollouts: Artifact | None = None,
        shaped: Artifact | None = None,
        policy: Artifact | None = None,
        scores: dict[str, Artifact] | None = None,
        replayed: Sequence[Part] = (),
        seed: int = 0,
        **settings: Any,
    ) -> Event:
        """What the train stage is given: six steps of 12 completions, unless `settings` of TrainConfig say otherwise."""
        policy, rollouts, scores = policy or self.policy(), rollouts or self.rollouts(), scores or {}
        parts = [Part(rollouts, shaped or self.shaped(rollouts), scores), *replayed]
        train = {"epochs": 3, "batch_completions": 12, "learning_rate": 0.01, "save_every_steps": 2, **settings}
        config = self.make_config({"seed": seed, "model.dtype": "float32", "train": train})
        return {
            "store": str(self.store.root),
            "request": train_request(config, 0, policy, parts).to_json(),
            "policy": str(policy.path),
            "parts": [part.to_json() for part in parts],
            "train": config.train.model_dump(mode="json"),
            "trust_remote_code": False,
        }

    def train(self, reporter: Reporter | None = None, **given: Any) -> Artifact:
        """The checkpoint, from the arguments of `spec`."""
        return run_training(self.spec(**given), reporter)

    def _artifact(self, request: Request, parts: Any, table: Any, summary: dict[str, Any], copy: Path | None = None) -> Artifact:
        with self.store.work(request) as work:
            if not isinstance(work, Work):
                return work
            for number, part in enumerate(parts):
                types = {name: column.dtype for name, column in table.columns().items()}
                work.write_table(f"part-{number:05d}.parquet", pl.DataFrame(part, schema=types), table)
            for path in copy.iterdir() if copy else ():
                (work.path / path.name).write_bytes(path.read_bytes())
            return work.finish(summary)


def silent() -> Reporter:
    return Reporter(os.open(os.devnull, os.O_WRONLY))


def run_training(spec: Event, reporter: Reporter | None = None) -> Artifact:
    return load_artifact(train(spec, reporter or silent())["artifact"])


@pytest.fixture(scope="session")
def train_spec() -> Callable[..., Artifact]:
    """train_spec(spec, reporter): the checkpoint."""
    return run_training


@pytest.fixture
def bench(store: Store, rows: Rows, model_path: Callable[..., Path], make_config: Callable[..., RunConfig]) -> Iterator[Bench]:
    """Training sets torch's global mode of determinism; it is put back."""
    yield Bench(store, rows, model_path, make_config)
    torch.use_deterministic_algorithms(False)
