"""Write the arithmetic task: multi-step sums and differences of small integers, as two Parquet files.

    python data/arithmetic/make.py          # writes train.parquet and heldout.parquet beside this file

A question is two or three operations on integers of 1 to 49, read from left to right, whose every partial result lies
between 0 and 99: `12+34-5`, answer `41`. No question occurs twice, within a file or across the two.
"""

import random
import re
import sys
from pathlib import Path

import polars as pl

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tiny import tables, write_command  # noqa: E402

SEED = 20_250_917
OPERATIONS = (2, 3)
OPERAND_MAX = 49
VALUE_MAX = 99


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


def draw_question(rng: random.Random) -> tuple[str, str]:
    """One question, and its answer: operands of 1 to 49, partial results of 0 to 99."""
    while True:
        question = str(rng.randint(1, OPERAND_MAX))
        for _ in range(rng.choice(OPERATIONS)):
            question += rng.choice("+-") + str(rng.randint(1, OPERAND_MAX))
        worked = steps(question)
        if all(0 <= result <= VALUE_MAX for *_, result in worked):
            return question, str(worked[-1][-1])


def make() -> dict[str, pl.DataFrame]:
    return tables("arith", draw_question, SEED)


if __name__ == "__main__":
    write_command(make, HERE)
