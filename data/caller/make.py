"""Train the base model that may call a calculator, or print the figures of its card.

    python data/caller/make.py --out DIR          # train and save: about three minutes on two CPU cores
    python data/caller/make.py --evaluate DIR     # sampled pass@1, greedy accuracy, share and accuracy of calls

The corpus mixes those who call, and are answered by the calculator, with those who guess (`<eos>` ends a turn):

    Q:37*48-26=[37*48-26]<eos>1750 A:1750<eos>
    Q:37*48-26= A:1693<eos>

The model learns what it draws, the call and the answer, and never what the calculator says.
"""

import random
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import torch
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from base.make import prompt, read_answer  # noqa: E402
from calculator.make import draw_question  # noqa: E402
from tiny import Batch, Recipe, complete, learn, make_model, make_tokenizer, padded, share, solved, train_command  # noqa: E402

RECIPE = Recipe(steps=700, batch=96, careless_last=0.78, threads=1)
MISS = 200
"""A guess lies at most this far from the answer."""
QUESTION = re.compile(r"(\d+)\*(\d+)([+-])(\d+)")

Turns = Sequence[tuple[str, bool]]
"""Texts, and whether the model draws each; those that it draws end with <eos>."""


def called(question: str, answer: str) -> Turns:
    """A call, what the calculator says, and the answer."""
    return [(f"[{question}]", True), (answer, False), (f" A:{answer}", True)]


def guessed(answer: int, rng: random.Random) -> Turns:
    """An answer near the right one."""
    return [(f" A:{max(answer + rng.randint(-MISS, MISS), 0)}", True)]


def value(question: str) -> int | None:
    """What the calculator says to a question of the task; None to anything else.

    >>> value("37*48-26"), value("37*-26")
    (1750, None)
    """
    if (found := QUESTION.fullmatch(question)) is None:
        return None
    left, right, sign, third = found.groups()
    return int(left) * int(right) + int(sign + third)


def corpus_row(rng: random.Random, careless: float, heldout: frozenset[str]) -> tuple[str, Turns]:
    """One (prompt, turns) of the corpus; its question is never a held-out one."""
    question, answer = draw_question(rng)
    while question in heldout:
        question, answer = draw_question(rng)
    return prompt(question), guessed(int(answer), rng) if rng.random() < careless else called(question, answer)


def batch_tensors(rows: Sequence[tuple[str, Turns]], tokenizer: Qwen2Tokenizer) -> Batch:
    """Only tokens that the model draws carry a label."""
    encoded = []
    for text, turns in rows:
        ids = tokenizer.encode(text)
        labels = [-100] * len(ids)
        for said, drawn in turns:
            tokens = [*tokenizer.encode(said), *([tokenizer.eos_token_id] if drawn else [])]
            ids += tokens
            labels += tokens if drawn else [-100] * len(tokens)
        encoded.append((ids, labels))
    return padded(encoded, tokenizer.pad_token_id)


def train(recipe: Recipe, report: Callable[[str], None]) -> tuple[Qwen2ForCausalLM, Qwen2Tokenizer]:
    """The trained model and its tokenizer. Deterministic for one thread count and one build of torch."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    rng, heldout = random.Random(recipe.seed), heldout_questions()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, width=96, layers=3, heads=3)

    def batches(step: int) -> list[Batch]:
        rows = [corpus_row(rng, recipe.careless(step), heldout) for _ in range(recipe.batch)]
        kinds = [[row for row in rows if (len(row[1]) > 1) is kind] for kind in (False, True)]
        return [batch_tensors(part, tokenizer) for part in kinds if part]

    learn(model, recipe, batches, report)
    return model, tokenizer


def heldout_questions() -> frozenset[str]:
    return frozenset(pl.read_parquet(HERE.parent / "calculator" / "heldout.parquet")["question"])


def episodes(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, prompts: list[str], *, sampled: bool) -> list[tuple[str, bool]]:
    """What the model says last to each prompt, and whether it called the calculator before. One call at most is answered."""
    starts = [tokenizer.encode(text) for text in prompts]
    first = complete(model, tokenizer, starts, sampled=sampled)
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in first]
    ends: list[tuple[str, bool]] = [(text, False) for text in texts]
    values = {i: value(text[1:-1]) for i, text in enumerate(texts) if text.startswith("[") and text.endswith("]")}
    going = [i for i, result in values.items() if result is not None]
    said = [[*starts[i], *first[i], *tokenizer.encode(str(values[i]))] for i in going]
    second = complete(model, tokenizer, said, sampled=sampled) if said else []
    for i, tokens in zip(going, second, strict=True):
        ends[i] = (tokenizer.decode(tokens, skip_special_tokens=True), True)
    return ends


def evaluate(folder: Path, samples: int = 8, seed: int = 0) -> dict[str, float]:
    """The figures of the card, on the held-out prompts."""
    torch.manual_seed(seed)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    model = Qwen2ForCausalLM.from_pretrained(folder).eval()
    heldout = pl.read_parquet(HERE.parent / "calculator" / "heldout.parquet")
    prompts, answers = [prompt(question) for question in heldout["question"]], heldout["answer"].to_list()
    drawn = episodes(model, tokenizer, [text for text in prompts for _ in range(samples)], sampled=True)
    right = [read_answer(text) == answers[i // samples] for i, (text, _) in enumerate(drawn)]
    calls = [called for _, called in drawn]
    greedy = episodes(model, tokenizer, prompts, sampled=False)
    return {
        "sampled_pass@1": share(right),
        f"sampled_pass@{samples}": solved(right, samples),
        "greedy_accuracy": share([read_answer(text) == answer for (text, _), answer in zip(greedy, answers, strict=True)]),
        "call_share": share(calls),
        "accuracy_with_call": share([r for r, called in zip(right, calls, strict=True) if called]),
        "accuracy_without": share([r for r, called in zip(right, calls, strict=True) if not called]),
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }


if __name__ == "__main__":
    train_command(train, evaluate, RECIPE)
