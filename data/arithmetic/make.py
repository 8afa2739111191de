"""Write the arithmetic task: multi-step sums and differences of small integers, as two Parquet files.

    python data/arithmetic/make.py          # writes train.parquet and heldout.parquet beside this file

A question is two or three operations on integers of 1 to 49, read from left to right, whose every partial result lies
between 0 and 99: `12+34-5`, answer `41`. No question occurs twice, within a file or across the two.
"""

import argparse
import random
import re
from pathlib import Path

import polars as pl

SEED = 20_250_917
TRAIN_PROMPTS = 4096
HELDOUT_PROMPTS = 256
OPERATIONS = (2, 3)
OPERAND_MAX = 49
VALUE_MAX = 99

HERE = Path(__file__).resolve().parent


def steps(question: str) -> list[tuple[int, str, int, int]]:
    """The question worked out from left to right, one (left, operator, right, result) a step.

    >>> steps("12+34-5")
    [(12, '+', 34, 46), (46, '-', 5, 41)]
    """
    first, *rest = re.findall(r"[+-]?\d+", question)
    value, worked = int(first), []
    for term in rest:
        result = value + int(term)
        worked.append((value, term[0], int(term[1:]), result))
        value = result
    return worked


def draw_question(rng: random.Random) -> str:
    """One question: operands of 1 to 49, partial results of 0 to 99."""
    while True:
        question = str(rng.randint(1, OPERAND_MAX))
        for _ in range(rng.choice(OPERATIONS)):
            question += rng.choice("+-") + str(rng.randint(1, OPERAND_MAX))
        if all(0 <= result <= VALUE_MAX for *_, result in steps(question)):
            return question


def make() -> tuple[pl.DataFrame, pl.DataFrame]:
    """The training and the held-out prompts, columns prompt_id, question and answer."""
    rng = random.Random(SEED)
    drawn: dict[str, None] = {}
    while len(drawn) < TRAIN_PROMPTS + HELDOUT_PROMPTS:
        drawn.setdefault(draw_question(rng))
    questions = list(drawn)
    return _frame("train", questions[:TRAIN_PROMPTS]), _frame("heldout", questions[TRAIN_PROMPTS:])


def _frame(split: str, questions: list[str]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "prompt_id": [f"arith-{split}-{i:05d}" for i in range(len(questions))],
            "question": questions,
            "answer": [str(steps(question)[-1][-1]) for question in questions],
        }
    )


def write(out: Path) -> None:
    """Write both files into `out`; equal bytes on every run with one version of Polars."""
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in zip(("train", "heldout"), make(), strict=True):
        frame.write_parquet(out / f"{name}.parquet", compression="uncompressed")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write train.parquet and heldout.parquet of the arithmetic task.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: beside this script)")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
