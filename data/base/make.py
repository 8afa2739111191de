"""Train the base model from scratch, or print the figures of its card.

    python data/base/make.py --out DIR          # train and save: about five minutes on two CPU cores
    python data/base/make.py --evaluate DIR     # sampled pass@1, greedy accuracy, share and accuracy of careful chains

The corpus mixes careful solvers, who write every step, with careless ones, who guess:

    Q:12+34-5=12+34=46,46-5=41 A:41
    Q:12+34-5= A:40

The model learns both, so at temperature 1 it guesses as often as the corpus does: there is something left to learn.
"""

import argparse
import json
import math
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from tokenizers import pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from arithmetic.make import VALUE_MAX, draw_question, steps  # noqa: E402

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
CONTEXT = 256
MAX_NEW_TOKENS = 48
GUESS_MISS = 9
"""A careless guess lies at most this far from the answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How the model is trained. The learning rate warms up, stays, and falls linearly to `final_lr` at the end."""

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


def prompt(question: str) -> str:
    return f"Q:{question}="


def careful(question: str) -> str:
    """Every step, then the answer.

    >>> careful("12+34-5")
    '12+34=46,46-5=41 A:41'
    """
    worked = steps(question)
    chain = ",".join(f"{left}{operator}{right}={result}" for left, operator, right, result in worked)
    return f"{chain} A:{worked[-1][-1]}"


def guess(question: str, rng: random.Random) -> str:
    """An answer near the right one, right about once in twenty times."""
    near = steps(question)[-1][-1] + rng.randint(-GUESS_MISS, GUESS_MISS)
    return f" A:{min(max(near, 0), VALUE_MAX)}"


def is_careful(completion: str) -> bool:
    """Whether at least one step is written out."""
    return "=" in completion


def heldout_questions() -> frozenset[str]:
    return frozenset(pl.read_parquet(HERE.parent / "arithmetic" / "heldout.parquet")["question"])


def corpus_row(rng: random.Random, careless: float, heldout: frozenset[str]) -> tuple[str, str]:
    """One (prompt, completion) of the corpus; its question is never a held-out one."""
    question = draw_question(rng)
    while question in heldout:
        question = draw_question(rng)
    completion = guess(question, rng) if rng.random() < careless else careful(question)
    return prompt(question), completion


def make_tokenizer() -> Qwen2Tokenizer:
    """One token a byte, so one a character of the task; pad, eos and unk come first. Encoding adds no token of its own.

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


def make_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen2ForCausalLM(config)


def batch_tensors(rows: list[tuple[str, str]], tokenizer: Qwen2Tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, rows x tokens, padded on the right; only completion tokens and EOS carry a label."""
    encoded = [(tokenizer.encode(text), [*tokenizer.encode(answer), tokenizer.eos_token_id]) for text, answer in rows]
    width = max(len(text) + len(answer) for text, answer in encoded)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, (text, answer) in enumerate(encoded):
        ids[i, : len(text) + len(answer)] = torch.tensor(text + answer)
        labels[i, len(text) : len(text) + len(answer)] = torch.tensor(answer)
    return ids, labels


def train(recipe: Recipe, report: Callable[[str], None]) -> tuple[Qwen2ForCausalLM, Qwen2Tokenizer]:
    """The trained model and its tokenizer. Deterministic for one thread count and one build of torch."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    rng, heldout = random.Random(recipe.seed), heldout_questions()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    started = time.monotonic()
    for step in range(recipe.steps):
        rows = [corpus_row(rng, recipe.careless(step), heldout) for _ in range(recipe.batch)]
        kinds = [[row for row in rows if is_careful(row[1]) is kind] for kind in (False, True)]
        parts = [batch_tensors(part, tokenizer) for part in kinds if part]
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
    return model.eval(), tokenizer


@torch.no_grad()
def complete(
    model: Qwen2ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    prompts: list[str],
    *,
    sampled: bool,
) -> list[str | None]:
    """The completion of each prompt; None where EOS did not come within MAX_NEW_TOKENS."""
    texts: list[str | None] = []
    for start in range(0, len(prompts), 512):
        inputs = tokenizer(prompts[start : start + 512], padding=True, return_tensors="pt", return_token_type_ids=False)
        mode = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
        output = model.generate(**inputs, **mode, max_new_tokens=MAX_NEW_TOKENS)[:, inputs["input_ids"].shape[1] :]
        for row in output.tolist():
            ended = tokenizer.eos_token_id in row
            texts.append(str(tokenizer.decode(row[: row.index(tokenizer.eos_token_id)])) if ended else None)
    return texts


def read_answer(completion: str | None) -> str | None:
    """What follows the last `A:`, or None."""
    found = re.search(r"A:(-?\d+)$", completion or "")
    return found.group(1) if found else None


def evaluate(folder: Path, samples: int = 8, seed: int = 0) -> dict[str, float]:
    """The figures of the card, on the held-out prompts."""
    torch.manual_seed(seed)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    model = Qwen2ForCausalLM.from_pretrained(folder).eval()
    heldout = pl.read_parquet(HERE.parent / "arithmetic" / "heldout.parquet")
    prompts, answers = [prompt(question) for question in heldout["question"]], heldout["answer"].to_list()

    texts = complete(model, tokenizer, [text for text in prompts for _ in range(samples)], sampled=True)
    right = [read_answer(text) == answers[i // samples] for i, text in enumerate(texts)]
    chains = [is_careful(text or "") for text in texts]
    greedy = complete(model, tokenizer, prompts, sampled=False)
    solved = [any(right[i : i + samples]) for i in range(0, len(right), samples)]
    return {
        "sampled_pass@1": _share(right),
        f"sampled_pass@{samples}": _share(solved),
        "greedy_accuracy": _share([read_answer(text) == answer for text, answer in zip(greedy, answers, strict=True)]),
        "careful_share": _share(chains),
        "careful_accuracy": _share([r for r, c in zip(right, chains, strict=True) if c]),
        "careless_accuracy": _share([r for r, c in zip(right, chains, strict=True) if not c]),
        "ended_share": _share([text is not None for text in texts]),
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags) if flags else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the base model, or print the figures of its card.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", type=Path, help="train, and save the model directory here")
    action.add_argument("--evaluate", type=Path, metavar="DIR", help="print the figures of the model in DIR")
    parser.add_argument("--threads", type=int, default=Recipe().threads, help="torch threads; part of the recipe")
    arguments = parser.parse_args()
    if arguments.evaluate:
        torch.set_num_threads(arguments.threads)
        print(json.dumps(evaluate(arguments.evaluate), indent=2))
        return
    model, tokenizer = train(Recipe(threads=arguments.threads), report=lambda line: print(line, flush=True))
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
