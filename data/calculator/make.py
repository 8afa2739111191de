"""Write the calculator task: a product and a sum that nobody works out at a glance, as two Parquet files.

    python data/calculator/make.py          # writes train.parquet and heldout.parquet beside this file

A question is a product of two numbers of 11 to 99, plus or minus a number of 11 to 99: `37*48-26`, answer `1750`. No question
occurs twice, within a file or across the two.
"""

import argparse
import random
from pathlib import Path

import polars as pl

SEED = 20_261_130
TRAIN_PROMPTS = 4096
HELDOUT_PROMPTS = 256
LEAST, MOST = 11, 99

HERE = Path(__file__).resolve().parent


def draw_question(rng: random.Random) -> tuple[str, int]:
    """One question, and its answer."""
    left, right, third = (rng.randint(LEAST, MOST) for _ in range(3))
    sign = rng.choice("+-")
    return f"{left}*{right}{sign}{third}", left * right + (third if sign == "+" else -third)


def make() -> tuple[pl.DataFrame, pl.DataFrame]:
    """The training and the held-out prompts, columns prompt_id, question and answer."""
    rng = random.Random(SEED)
    drawn: dict[str, int] = {}
    while len(drawn) < TRAIN_PROMPTS + HELDOUT_PROMPTS:
        drawn.update([draw_question(rng)])
    questions = list(drawn.items())
    return _frame("train", questions[:TRAIN_PROMPTS]), _frame("heldout", questions[TRAIN_PROMPTS:])


def _frame(split: str, questions: list[tuple[str, int]]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "prompt_id": [f"calc-{split}-{i:05d}" for i in range(len(questions))],
            "question": [question for question, _ in questions],
            "answer": [str(answer) for _, answer in questions],
        }
    )


def write(out: Path) -> None:
    """Write both files into `out`; equal bytes on every run with one version of Polars."""
    out.mkdir(parents=True, exist_ok=True)
    for name, frame in zip(("train", "heldout"), make(), strict=True):
        frame.write_parquet(out / f"{name}.parquet", compression="uncompressed")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write train.parquet and heldout.parquet of the calculator task.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: beside this script)")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
