"""What the training benchmarks train: models with random weights and stored completions of random tokens, as artifacts.

Lengths are what matters to speed, so they are drawn from the shapes below; tokens are uniform. The stored logprobs are the
model's own plus a little noise, so that importance ratios are not all 1.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

SEED = 0
NOISE = 0.01
"""Standard deviation of stored - true logprob, nats."""
FIRST_TOKEN = 4
"""Ids below are special."""
Lengths = Callable[[np.random.Generator], int]


@dataclass(frozen=True)
class Shape:
    """Lengths of prompts and answers, and how many of them make an optimizer step."""

    prompt: tuple[int, int]
    """Shortest and longest, drawn uniformly."""
    answer: Lengths
    group: int
    completions: int
    """Of an optimizer step."""
    words: str


SHAPES = {
    "short": Shape((16, 32), lambda random: int(random.integers(8, 33)), 8, 64, "prompts 16-32, answers 8-32, G = 8"),
    "gsm8k": Shape(
        (60, 160),
        lambda random: int(np.clip(random.lognormal(np.log(150), 0.4), 32, 400)),
        8,
        32,
        "prompts 60-160, answers log-normal around 150 (32-400), G = 8",
    ),
    "long-8": Shape((1024, 1024), lambda random: int(random.integers(64, 257)), 8, 16, "prompt 1,024, answers 64-256, G = 8"),
    "long-16": Shape((1024, 1024), lambda random: int(random.integers(64, 257)), 16, 16, "prompt 1,024, answers 64-256, G = 16"),
    "gpu": Shape(
        (256, 1024), lambda random: int(random.integers(128, 1025)), 8, 128, "prompts 256-1,024, answers 128-1,024, G = 8"
    ),
}


@dataclass(frozen=True)
class Size:
    """A Qwen2 with the output projection tied to the embedding, as Qwen2.5-0.5B has it."""

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int


SIZES = {
    "1M": Size(128, 384, 5, 4, 2),
    "20M": Size(384, 1024, 12, 6, 2),
    "100M": Size(768, 2048, 17, 12, 2),
    "135M": Size(576, 1536, 30, 9, 3),
    "0.5B": Size(896, 4864, 24, 14, 2),
}
"""By the parameters of their layers; the vocabulary's come on top. 135M counts one of 49k: it is SmolLM2-135M's. 0.5B is
Qwen2.5-0.5B's."""
VOCABULARIES = {"8k": 8192, "49k": 49152, "150k": 151936}
"""49k is SmolLM2's, 150k Qwen2.5's."""


@dataclass(frozen=True)
class Cell:
    """One thing to measure."""

    shape: str
    size: str
    vocabulary: str
    dtype: str = "float32"

    @property
    def name(self) -> str:
        return f"{self.shape}, {self.size}, {self.vocabulary}"

    @property
    def model(self) -> str:
        return f"{self.size}-{self.vocabulary}"


def groups_of(cell: Cell, steps: int = 1) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Prompt and completions, in tokens, of the groups of `steps` optimizer steps."""
    shape, entries = SHAPES[cell.shape], VOCABULARIES[cell.vocabulary]
    for number in range(steps * shape.completions // shape.group):
        random = np.random.default_rng([SEED, number, *cell.shape.encode()])
        prompt = random.integers(shape.prompt[0], shape.prompt[1] + 1)
        lengths = [shape.answer(random) for _ in range(shape.group)]
        prompt_tokens, *completions = (random.integers(FIRST_TOKEN, entries, n).tolist() for n in (prompt, *lengths))
        yield prompt_tokens, completions


def save_model(cell: Cell, place: Path) -> None:
    """Random weights, always the same, and a tokenizer that only names the special tokens."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    size = SIZES[cell.size]
    config = Qwen2Config(
        vocab_size=VOCABULARIES[cell.vocabulary],
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(SEED)
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>").save_pretrained(place)


def prepare(cell: Cell, store: Path, steps: int = 1, dead: float = 0.0) -> dict[str, Any]:
    """Make (or find) the checkpoint, rollouts and shaped artifacts of a cell.

    Args:
        dead: share of the groups whose advantages are all 0.

    Returns:
        Their directories, by kind.
    """
    from pipeline.common.lengths import length
    from pipeline.store import Request, Store, Work
    from schemas import Rollouts, Shaped

    def made(request: Request, fill: Callable[[Work], dict[str, Any]]) -> Any:
        with Store(str(store)).work(request) as work:
            return work.finish(fill(work)) if isinstance(work, Work) else work

    def model(work: Work) -> dict[str, Any]:
        save_model(cell, work.path)
        return {"iteration": 0}

    checkpoint = made(Request("checkpoint", "import/1", {"benchmark": cell.model}), model)

    def rollouts(work: Work) -> dict[str, Any]:
        frame = rollouts_frame(cell, steps, checkpoint)
        work.write_table("part-00000.parquet", frame, Rollouts)
        return {"completions": len(frame), "tokens": int(frame.select(length("completion_token_ids").sum()).item())}

    recipe = {"benchmark": cell.name, "steps": steps}
    answers = made(Request("rollouts", "generate/1", recipe, (checkpoint.as_parent("policy"),)), rollouts)

    def shaped(work: Work) -> dict[str, Any]:
        frame = pl.read_parquet(answers.path / "part-00000.parquet", columns=["group_id", "sample_index", "reward"])
        reward = pl.col("reward")
        number = pl.col("group_id").rank("dense").cast(pl.Float64) - 1
        over = (reward - reward.mean().over("group_id")) / (reward.std().over("group_id") + 1e-4)
        frame = frame.select(
            "group_id",
            "sample_index",
            advantage=pl.when(number < dead * number.max() + dead).then(0.0).otherwise(over).cast(pl.Float32),
            weight=pl.lit(1.0, pl.Float32),
            keep=pl.lit(True),
            drop_reason=pl.lit(None, pl.String),
        )
        work.write_table("part-00000.parquet", frame, Shaped)
        return {}

    table = made(
        Request("shaped", "shape/1", recipe | ({"dead": dead} if dead else {}), (answers.as_parent("rollouts"),)), shaped
    )
    return {"checkpoint": str(checkpoint.path), "rollouts": str(answers.path), "shaped": str(table.path)}


def rollouts_frame(cell: Cell, steps: int, checkpoint: Any) -> pl.DataFrame:
    """The rows of a `Rollouts` table."""
    from schemas import Rollouts

    rows = []
    logprobs = stored_logprobs(cell, steps, checkpoint.path)
    for number, (prompt, completions) in enumerate(groups_of(cell, steps)):
        random = np.random.default_rng([SEED, 1, number])
        rewards = random.normal(size=len(completions))
        for sample, tokens in enumerate(completions):
            rows.append(
                {
                    "group_id": f"g{number:07d}",
                    "sample_index": sample,
                    "prompt_id": f"p{number:07d}",
                    "prompt_token_ids": prompt,
                    "completion_token_ids": tokens,
                    "behavior_logprobs": next(logprobs),
                    "prompt_text": "",
                    "completion_text": "",
                    "reward": float(rewards[sample]),
                    "policy_id": checkpoint.id,
                    "policy_version": 0,
                    "source": "self",
                    "temperature": 1.0,
                    "top_p": 1.0,
                    "top_k": 0,
                    "min_p": 0.0,
                    "logprobs_mode": "processed_logprobs",
                    "engine": "none",
                    "status": "ok",
                }
            )
    types = {name: column.dtype for name, column in Rollouts.columns().items()}
    return pl.DataFrame([{**dict.fromkeys(types), **row} for row in rows], schema=types)


def stored_logprobs(cell: Cell, steps: int, model: Path) -> Iterator[list[float]]:
    """Of every completion in order: the model's own, plus noise."""
    import torch

    from pipeline.train.batch import collate
    from pipeline.train.model import Policy
    from pipeline.train.snapshot import TrainingCompletion, TrainingGroup
    from pipeline.train.tree import PackedRow

    policy = Policy(model, cell.dtype, trust_remote_code=False, trains=False)
    for number, (prompt, completions) in enumerate(groups_of(cell, steps)):
        random = np.random.default_rng([SEED, 2, number])
        arrays = [np.asarray(tokens, np.int32) for tokens in completions]
        named = [
            TrainingCompletion(group_id="", sample_index=i, tokens=tokens, behavior=None, mask=np.ones(len(tokens), np.bool_))
            for i, tokens in enumerate(arrays)
        ]
        with torch.no_grad():
            batch = collate([PackedRow.of(TrainingGroup(np.asarray(prompt, np.int32), named), named)], policy.device)
            found = policy.logprobs(batch)[0].cpu().numpy()
        pieces = np.split(found, np.cumsum([len(one.tokens) for one in batch.flat.completions])[:-1])
        by_sample = {one.sample_index: piece for one, piece in zip(batch.flat.completions, pieces, strict=True)}
        for sample in range(len(arrays)):
            noise = NOISE * random.normal(size=len(arrays[sample]))
            yield (by_sample[sample] + noise).clip(max=0).astype(np.float32).tolist()


def stored(rollouts: Path, shaped: Path) -> pl.DataFrame:
    """The stored completions with their advantages, in order."""
    frames = (pl.read_parquet(f"{place}/part-*.parquet") for place in (rollouts, shaped))
    names = ["group_id", "sample_index", "prompt_token_ids", "completion_token_ids", "behavior_logprobs", "reward"]
    rows, advantages = frames
    return rows.select(names).join(advantages.select("group_id", "sample_index", "advantage"), on=names[:2]).sort(names[:2])


def answered(program: Sequence[str], order: dict[str, Any], checkout: Path, who: str) -> Any:
    """What a process of its own answers to an order, in the file that the order names as `answer`.

    Args:
        program: the command that is given `--work ORDER`.
        checkout: what it imports from.
        who: does it, for the message if it fails, which ends this process.
    """
    with tempfile.NamedTemporaryFile() as answer:
        command = [*program, "--work", json.dumps({**order, "answer": answer.name})]
        # Threads that wait for work sleep instead of spinning, so that CPU seconds count work.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": str(checkout)}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{who} failed:\n{done.stdout[-4000:]}")
        return json.loads(Path(answer.name).read_text(encoding="utf-8"))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch
    import transformers

    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": f"{model or platform.machine()}, {os.cpu_count()} cores",
        "gpu": gpu,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def matmul_rate(dtype: str, seconds: float = 2.0) -> float:
    """Best rate of a large matrix product on this machine, flop/s."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 8192 if device == "cuda" else 2048
    one, other = (torch.randn(side, side, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        one @ other
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


class Memory:
    """Peak memory of this process: of the GPU if there is one, else resident."""

    def __init__(self) -> None:
        """Remember what is held now; `peak` is counted from here."""
        self._start = self._held()
        self.reset()

    def reset(self) -> None:
        """Forget the peak so far."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Largest memory since the last reset, less what was held at the start, bytes."""
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() - self._start
        return _status("VmHWM") - self._start

    def _held(self) -> int:
        import torch

        return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")


def _status(name: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in _lines("/proc/self/status") if line.startswith(name))


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


def record(path: Path, key: str, figures: dict[str, Any]) -> None:
    """Put figures into a results file under a key, leaving the others as they are."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found[key] = figures
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(found.items())), indent=2) + "\n", encoding="utf-8")


def step_flops(cell: Cell) -> float:
    """What an optimizer step needs, forward and backward: each prompt once, logits for completion tokens only, nothing twice.

    2 flops per weight and token, 4 per unit of width for each pair of positions that see each other; the backward pass twice
    that.
    """
    size, entries = SIZES[cell.size], VOCABULARIES[cell.vocabulary]
    kv = size.width * size.kv_heads // size.heads
    weights = size.layers * (2 * size.width * (size.width + kv) + 3 * size.width * size.inner)
    tokens = answers = pairs = 0
    for prompt, completions in groups_of(cell):
        lengths = [len(completion) for completion in completions]
        tokens += len(prompt) + sum(lengths)
        answers += sum(lengths)
        pairs += len(prompt) ** 2 // 2 + sum(n * len(prompt) + n * n // 2 for n in lengths)
    return 3.0 * (2 * weights * tokens + 4 * size.width * size.layers * pairs + 2 * size.width * entries * answers)


def step_tokens(cell: Cell) -> tuple[int, int]:
    """Completion tokens of an optimizer step, and all tokens with each prompt counted once."""
    answers = [sum(map(len, completions)) for _, completions in groups_of(cell)]
    return sum(answers), sum(answers) + sum(len(prompt) for prompt, _ in groups_of(cell))
