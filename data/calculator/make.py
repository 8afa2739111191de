"""Write the calculator task: a product and a sum that nobody works out at a glance, as two Parquet files.

    python data/calculator/make.py          # writes train.parquet and heldout.parquet beside this file

A question is a product of two numbers of 11 to 99, plus or minus a number of 11 to 99: `37*48-26`, answer `1750`. No question
occurs twice, within a file or across the two.
"""

import random
import sys
from pathlib import Path

import polars as pl

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tiny import tables, write_command  # noqa: E402

SEED = 20_261_130
LEAST, MOST = 11, 99


def draw_question(rng: random.Random) -> tuple[str, str]:
    """One question, and its answer."""
    left, right, third = (rng.randint(LEAST, MOST) for _ in range(3))
    sign = rng.choice("+-")
    return f"{left}*{right}{sign}{third}", str(left * right + (third if sign == "+" else -third))


def make() -> dict[str, pl.DataFrame]:
    return tables("calc", draw_question, SEED)


if __name__ == "__main__":
    write_command(make, HERE)
