"""How the tiny tasks and models of this folder are made: what the scripts make.py have in common."""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from tokenizers import pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

TRAIN_PROMPTS = 4096
HELDOUT_PROMPTS = 256
PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
CONTEXT = 256
MAX_NEW_TOKENS = 48

Batch = tuple[torch.Tensor, torch.Tensor]
"""Token ids and labels, rows x tokens, padded on the right; a label of -100 is not learned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a model is trained. The learning rate warms up, stays, and falls linearly to `final_lr` at the end."""

    seed: int = 0
    steps: int = 1400
    batch: int = 128
    lr: float = 2e-3
    final_lr: float = 1e-4
    warmup: int = 100
    decay: float = 0.35
    """Share of the steps over which the learning rate falls."""
    careless_first: float = 0.25
    """Share of careless rows while the steps themselves are learned."""
    careless_last: float = 0.75
    """Share of careless rows while the learning rate falls: what the finished model imitates."""
    weight_decay: float = 0.05
    threads: int = 2

    def learning_rate(self, step: int) -> float:
        left = (self.steps - step) / (self.steps * self.decay)
        falling = self.final_lr + (self.lr - self.final_lr) * min(1.0, left)
        return falling * min(1.0, (step + 1) / self.warmup)

    def careless(self, step: int) -> float:
        return self.careless_first if step < self.steps * (1 - self.decay) else self.careless_last


def tables(name: str, draw: Callable[[random.Random], tuple[str, str]], seed: int) -> dict[str, pl.DataFrame]:
    """The training and the held-out prompts of a task, columns prompt_id, question and answer. No question occurs twice, within
    a table or across the two.

    name: what prompt ids begin with.
    draw: one question and its answer.
    """
    rng = random.Random(seed)
    drawn: dict[str, str] = {}
    while len(drawn) < TRAIN_PROMPTS + HELDOUT_PROMPTS:
        drawn.update([draw(rng)])
    rows = list(drawn.items())
    split = {"train": rows[:TRAIN_PROMPTS], "heldout": rows[TRAIN_PROMPTS:]}
    return {
        part: pl.DataFrame(
            {
                "prompt_id": [f"{name}-{part}-{i:05d}" for i in range(len(rows))],
                "question": [question for question, _ in rows],
                "answer": [answer for _, answer in rows],
            }
        )
        for part, rows in split.items()
    }


def write_tables(frames: dict[str, pl.DataFrame], out: Path) -> None:
    """Write one Parquet file a table into `out`; equal bytes on every run with one version of Polars."""
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        frame.write_parquet(out / f"{name}.parquet", compression="uncompressed")


def make_tokenizer() -> Qwen2Tokenizer:
    """One token a byte, so one a character of the tasks; pad, eos and unk come first. Encoding adds no token of its own.

    `AutoTokenizer` builds a Qwen2Tokenizer for every Qwen2 model, whatever its tokenizer.json says: byte-level, and
    silent about bytes it has no token for. So this is one, and it has them all.
    """
    vocabulary = [PAD, EOS, UNK, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=[],
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=CONTEXT,
        padding_side="left",
    )


def make_model(tokenizer: Qwen2Tokenizer, *, width: int, layers: int, heads: int) -> Qwen2ForCausalLM:
    """A Qwen2 of that width with random weights; its MLPs are four times as wide."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen2ForCausalLM(config)


def padded(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> Batch:
    """A batch of rows, each its ids and as many labels."""
    width = max(len(ids) for ids, _ in rows)
    ids_RT, labels_RT = torch.full((len(rows), width), pad), torch.full((len(rows), width), -100)
    for i, (ids, labels) in enumerate(rows):
        ids_RT[i, : len(ids)] = torch.tensor(ids)
        labels_RT[i, : len(ids)] = torch.tensor(labels)
    return ids_RT, labels_RT


def learn(model: Qwen2ForCausalLM, recipe: Recipe, batches: Callable[[int], list[Batch]], report: Callable[[str], None]) -> None:
    """Train `model` on the batches of each step, all of which make one gradient. Deterministic for one thread count and one build
    of torch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    started = time.monotonic()
    for step in range(recipe.steps):
        parts = batches(step)
        tokens = sum(int((labels != -100).sum()) for _, labels in parts)
        total = 0.0
        for ids, labels in parts:
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / tokens
            loss.backward()
            total += loss.item()
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == recipe.steps - 1:
            minutes = (time.monotonic() - started) / 60
            report(f"step {step:5d}  loss {total:.4f}  grad norm {norm:.2f}  {minutes:.1f} min")
    model.eval()


@torch.no_grad()
def complete(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, prompts: Sequence[list[int]], *, sampled: bool
) -> list[list[int]]:
    """What the model draws after the tokens of each prompt: tokens up to EOS, which is the last unless it did not come within
    MAX_NEW_TOKENS."""
    drawn: list[list[int]] = []
    for start in range(0, len(prompts), 512):
        inputs = tokenizer.pad({"input_ids": list(prompts[start : start + 512])}, return_tensors="pt")
        mode = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
        output = model.generate(**inputs, **mode, max_new_tokens=MAX_NEW_TOKENS)[:, inputs["input_ids"].shape[1] :]
        for row in output.tolist():
            ended = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            drawn.append(row[:ended])
    return drawn


def solved(right: Sequence[bool], samples: int) -> float:
    """The share of prompts with a right answer among their `samples` answers, which stand side by side."""
    return share([any(right[i : i + samples]) for i in range(0, len(right), samples)])


def share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else math.nan


def write_command(frames: Callable[[], dict[str, pl.DataFrame]], here: Path) -> None:
    """The command line of a task's make.py."""
    parser = argparse.ArgumentParser(description=f"Write train.parquet and heldout.parquet of the task {here.name}.")
    parser.add_argument("--out", type=Path, default=here, help="folder to write to (default: beside this script)")
    write_tables(frames(), parser.parse_args().out)


def train_command(
    train: Callable[[Recipe, Callable[[str], None]], tuple[Qwen2ForCausalLM, Qwen2Tokenizer]],
    evaluate: Callable[[Path], dict[str, float]],
    recipe: Recipe,
) -> None:
    """The command line of a model's make.py."""
    parser = argparse.ArgumentParser(description="Train the model, or print the figures of its card.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", type=Path, help="train, and save the model directory here")
    action.add_argument("--evaluate", type=Path, metavar="DIR", help="print the figures of the model in DIR")
    arguments = parser.parse_args()
    torch.set_num_threads(recipe.threads)
    if arguments.evaluate:
        print(json.dumps(evaluate(arguments.evaluate), indent=2))
        return
    model, tokenizer = train(recipe, lambda line: print(line, flush=True))
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
