"""Train the base model that may call a calculator, or print the figures of its card.

    python data/caller/make.py --out DIR          # train and save: about three minutes on two CPU cores
    python data/caller/make.py --evaluate DIR     # sampled pass@1, greedy accuracy, share and accuracy of calls

The corpus mixes those who call, and are answered by the calculator, with those who guess (`<eos>` ends a turn):

    Q:37*48-26=[37*48-26]<eos>1750 A:1750<eos>
    Q:37*48-26= A:1693<eos>

The model learns what it draws, the call and the answer, and never what the calculator says.
"""

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from base.make import CONTEXT, MAX_NEW_TOKENS, Recipe, make_tokenizer, prompt, read_answer  # noqa: E402
from calculator.make import draw_question  # noqa: E402

RECIPE = Recipe(steps=700, batch=96, careless_last=0.78, threads=1)
MISS = 200
"""A guess lies at most this far from the answer."""
QUESTION = re.compile(r"(\d+)\*(\d+)([+-])(\d+)")

Turns = Sequence[tuple[str, bool]]
"""Texts, and whether the model draws each; those that it draws end with <eos>."""


def called(question: str, answer: int) -> Turns:
    """A call, what the calculator says, and the answer."""
    return [(f"[{question}]", True), (str(answer), False), (f" A:{answer}", True)]


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
    return prompt(question), guessed(answer, rng) if rng.random() < careless else called(question, answer)


def make_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen2ForCausalLM(config)


def batch_tensors(rows: Sequence[tuple[str, Turns]], tokenizer: Qwen2Tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, rows x tokens, padded on the right; only tokens that the model draws carry a label."""
    encoded = []
    for text, turns in rows:
        ids = tokenizer.encode(text)
        labels = [-100] * len(ids)
        for said, drawn in turns:
            tokens = [*tokenizer.encode(said), *([tokenizer.eos_token_id] if drawn else [])]
            ids += tokens
            labels += tokens if drawn else [-100] * len(tokens)
        encoded.append((ids, labels))
    width = max(len(ids) for ids, _ in encoded)
    ids_RT = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels_RT = torch.full((len(rows), width), -100)
    for i, (ids, labels) in enumerate(encoded):
        ids_RT[i, : len(ids)] = torch.tensor(ids)
        labels_RT[i, : len(ids)] = torch.tensor(labels)
    return ids_RT, labels_RT


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
        kinds = [[row for row in rows if (len(row[1]) > 1) is kind] for kind in (False, True)]
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


def heldout_questions() -> frozenset[str]:
    return frozenset(pl.read_parquet(HERE.parent / "calculator" / "heldout.parquet")["question"])


@torch.no_grad()
def turn(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, prompts: list[list[int]], *, sampled: bool) -> list[list[int]]:
    """What the model draws after each prompt: tokens up to <eos>, which is the last unless it did not come."""
    drawn: list[list[int]] = []
    for start in range(0, len(prompts), 512):
        part = prompts[start : start + 512]
        inputs = tokenizer.pad({"input_ids": part}, return_tensors="pt")
        mode = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
        output = model.generate(**inputs, **mode, max_new_tokens=MAX_NEW_TOKENS)[:, inputs["input_ids"].shape[1] :]
        for row in output.tolist():
            ended = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            drawn.append(row[:ended])
    return drawn


def episodes(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, prompts: list[str], *, sampled: bool) -> list[tuple[str, bool]]:
    """What the model says last to each prompt, and whether it called the calculator before. One call at most is answered."""
    starts = [tokenizer.encode(text) for text in prompts]
    first = turn(model, tokenizer, starts, sampled=sampled)
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in first]
    ends: list[tuple[str, bool]] = [(text, False) for text in texts]
    values = {i: value(text[1:-1]) for i, text in enumerate(texts) if text.startswith("[") and text.endswith("]")}
    going = [i for i, result in values.items() if result is not None]
    said = [[*starts[i], *first[i], *tokenizer.encode(str(values[i]))] for i in going]
    second = turn(model, tokenizer, said, sampled=sampled) if said else []
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
    solved = [any(right[i : i + samples]) for i in range(0, len(right), samples)]
    greedy = episodes(model, tokenizer, prompts, sampled=False)
    return {
        "sampled_pass@1": _share(right),
        f"sampled_pass@{samples}": _share(solved),
        "greedy_accuracy": _share([read_answer(text) == answer for (text, _), answer in zip(greedy, answers, strict=True)]),
        "call_share": _share(calls),
        "accuracy_with_call": _share([r for r, called in zip(right, calls, strict=True) if called]),
        "accuracy_without": _share([r for r, called in zip(right, calls, strict=True) if not called]),
        "parameters": float(sum(p.numel() for p in model.parameters())),
    }


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags) if flags else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the model that may call a calculator, or print the figures of its card.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", type=Path, help="train, and save the model directory here")
    action.add_argument("--evaluate", type=Path, metavar="DIR", help="print the figures of the model in DIR")
    parser.add_argument("--threads", type=int, default=RECIPE.threads, help="torch threads; part of the recipe")
    arguments = parser.parse_args()
    if arguments.evaluate:
        torch.set_num_threads(arguments.threads)
        print(json.dumps(evaluate(arguments.evaluate), indent=2))
        return
    model, tokenizer = train(RECIPE, report=lambda line: print(line, flush=True))
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
