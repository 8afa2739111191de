"""Train the base model from scratch, or print the figures of its card.

    python data/base/make.py --out DIR          # train and save: about five minutes on two CPU cores
    python data/base/make.py --evaluate DIR     # sampled pass@1, greedy accuracy, share and accuracy of careful chains

The corpus mixes careful solvers, who write every step, with careless ones, who guess:

    Q:12+34-5=12+34=46,46-5=41 A:41
    Q:12+34-5= A:40

The model learns both, so at temperature 1 it guesses as often as the corpus does: there is something left to learn.
"""

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import torch
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from arithmetic.make import VALUE_MAX, draw_question, steps  # noqa: E402
from tiny import Batch, Recipe, complete, learn, make_model, make_tokenizer, padded, share, solved, train_command  # noqa: E402

GUESS_MISS = 9
"""A careless guess lies at most this far from the answer."""


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
    question, _ = draw_question(rng)
    while question in heldout:
        question, _ = draw_question(rng)
    completion = guess(question, rng) if rng.random() < careless else careful(question)
    return prompt(question), completion


def batch_tensors(rows: list[tuple[str, str]], tokenizer: Qwen2Tokenizer) -> Batch:
    """Only completion tokens and EOS carry a label."""
    encoded = []
    for text, answer in rows:
        asked, said = tokenizer.encode(text), [*tokenizer.encode(answer), tokenizer.eos_token_id]
        encoded.append((asked + said, [-100] * len(asked) + said))
    return padded(encoded, tokenizer.pad_token_id)


def train(recipe: Recipe, report: Callable[[str], None]) -> tuple[Qwen2ForCausalLM, Qwen2Tokenizer]:
    """The trained model and its tokenizer. Deterministic for one thread count and one build of torch."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    rng, heldout = random.Random(recipe.seed), heldout_questions()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, width=128, layers=4, heads=4)

    def batches(step: int) -> list[Batch]:
        rows = [corpus_row(rng, recipe.careless(step), heldout) for _ in range(recipe.batch)]
        kinds = [[row for row in rows if is_careful(row[1]) is kind] for kind in (False, True)]
        return [batch_tensors(part, tokenizer) for part in kinds if part]

    learn(model, recipe, batches, report)
    return model, tokenizer


def said(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, prompts: list[str], *, sampled: bool) -> list[str | None]:
    """The completion of each prompt; None where it did not end."""
    drawn = complete(model, tokenizer, [tokenizer.encode(text) for text in prompts], sampled=sampled)
    return [str(tokenizer.decode(row[:-1])) if row[-1] == tokenizer.eos_token_id else None for row in drawn]


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

    texts = said(model, tokenizer, [text for text in prompts for _ in range(samples)], sampled=True)
    right = [read_answer(text) == answers[i // samples] for i, text in enumerate(texts)]
    chains = [is_careful(text or "") for text in texts]
    greedy = said(model, tokenizer, prompts, sampled=False)
    return {
        "sampled_pass@1": share(right),
        f"sampled_pass@{samples}": solved(right, samples),
        "greedy_accuracy": share([read_answer(text) == answer for text, answer in zip(greedy, answers, strict=True)]),
        "careful_share": share(chains),
        "careful_accuracy": share([r for r, c in zip(right, chains, strict=True) if c]),
        "careless_accuracy": share([r for r, c in zip(right, chains, strict=True) if not c]),
        "ended_share": share([text is not None for text in texts]),
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }


if __name__ == "__main__":
    train_command(train, evaluate, Recipe())
