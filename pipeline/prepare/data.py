"""A user's own questions and answers: looked at, and divided into what is trained on and what is held out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.common.errors import DataError, UserError
from pipeline.common.near import did_you_mean
from pipeline.common.paths import at_path
from pipeline.config.data import PromptSource
from pipeline.sources.dialogues import divided, is_chat
from pipeline.sources.readers import FILE_SUFFIXES, BadRow, read_rows
from pipeline.store.files import whole_file

SEPARATORS = {".csv": ",;\t", ".tsv": "\t"}
"""What may stand between columns, likeliest first: spreadsheets write semicolons where numbers have commas."""
QUESTIONS = ("question", "problem", "prompt", "instruction", "query", "task", "input", "text", "statement", "q")
ANSWERS = (
    *("answer", "solution", "ground_truth", "groundtruth", "gold", "target", "expected", "reference", "truth", "correct"),
    *("output", "response", "completion", "label", "result", "value", "a"),
)
"""Names that columns of questions and answers often have, likeliest first."""
ASIDE = ("id", "idx", "index", "uuid", "key", "level", "difficulty", "subject", "category", "type", "source", "split", "unit")
"""Names of columns that are neither, alone or at the end of a name such as row_id."""
READABLE = (".jsonl", ".ndjson", ".parquet")
"""What a run reads as it is."""
WORKED = r"#### (.+)$"
"""What finds the answer at the end of a worked solution, as GSM8K writes it."""
HELD_OUT_SHARE, HELD_OUT_MOST = 0.1, 512
LEAST_ROWS = 10
NUMBER = re.compile(r"\s*[-+$]?[0-9][0-9,]*(\.[0-9]+)?%?\s*")


@dataclass(frozen=True)
class Questions:
    """A file's rows."""

    path: Path
    columns: list[str]
    rows: list[dict[str, Any]]
    bad: list[BadRow]
    unit: str

    def guess(self, names: Sequence[str], *, but: str | None = None) -> str | None:
        """The column that is called most like one of the names, whatever its case."""
        lower = {column.lower(): column for column in self.columns if column != but}
        exact = [lower[name] for name in names if name in lower]
        close = [column for name in names for low, column in lower.items() if len(name) > 1 and name in low]
        return next(iter([*exact, *close]), None)

    def only_other(self, than: str | None) -> str | None:
        """The column that is left when one is known and names such as `id` are passed over, if it is the only one."""
        left = [name for name in self.columns if name != than and name.lower().rpartition("_")[2] not in ASIDE]
        return left[0] if than is not None and len(left) == 1 else None

    def texts(self, column: str) -> list[str]:
        """What a column, or the place below one, holds as text; of chat messages what is asked."""
        return [text for row in self.rows if (text := text_at(row, column)) is not None]


def text_at(row: dict[str, Any], column: str) -> str | None:
    try:
        value = at_path(row, column)
    except (KeyError, ValueError):
        return None
    if is_chat(value):
        with contextlib.suppress(ValueError):
            question, earlier = divided(value, column)
            return "\n".join([*(str(turn["content"]) for turn in earlier), question])
    return None if value is None else str(value)


def read_questions(path: Path) -> Questions:
    """Read JSONL, Parquet, CSV, TSV, or a JSON list of objects.

    Raises:
        UserError: no such file, or a dataset that is no file.
        DataError: not what its name says, or without rows.
    """
    if path.is_dir() or (not path.exists() and path.suffix not in FILE_SUFFIXES):
        raise UserError(
            f"{path}: not a file; init reads .jsonl, .json, .parquet, .csv and .tsv. For a dataset from the hub or one that "
            f"`datasets.save_to_disk` wrote, write the config by hand: docs/configuration.md, data.train{did_you_mean(path)}"
        )
    if not path.exists():
        raise UserError(f"{path}: no such file{did_you_mean(path)}")
    found = _of_text(path) if path.suffix.lower() in (*SEPARATORS, ".json") else None
    if found is None:
        rows = read_rows(PromptSource(path=str(path)))
        found = Questions(path, rows.columns, rows.rows, rows.bad, rows.unit)
    if not found.rows:
        raise DataError(f"{path}: no rows. A file needs one question with its answer per row")
    return found


def _of_text(path: Path) -> Questions:
    try:
        if path.suffix.lower() == ".json":
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
        else:
            table = pl.read_csv(path, separator=_separator(path), infer_schema=False, glob=False)
            return Questions(path, table.columns, table.to_dicts(), [], "row")
    except (ValueError, RecursionError, OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: cannot be read: {(str(error).strip() or type(error).__name__).splitlines()[0]}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path}: expected a list of objects such as [{{"question": …, "answer": …}}], or one object per line')
    return Questions(path, list(dict.fromkeys(key for row in rows for key in row)), rows, [], "row")


def _separator(path: Path) -> str:
    """The one that parts the names in the first line; the usual one where none does."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        names = file.readline()
    known = SEPARATORS[path.suffix.lower()]
    return next((one for one in known if one in names), known[0])


def looks_worked(answers: Sequence[str]) -> bool:
    """Whether answers are worked solutions that end in '#### answer'."""
    return sum(re.search(WORKED, answer) is not None for answer in answers) > 0.9 * len(answers) > 0


def looks_numeric(answers: Sequence[str]) -> bool:
    return sum(NUMBER.fullmatch(answer) is not None for answer in answers) > 0.9 * len(answers) > 0


def divide(questions: Questions, column: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows for training, and rows held out: a tenth of the questions, those whose hashes come first.

    The same questions are held out whatever order the rows are in, and a question that is there twice is on one side only.

    Raises:
        DataError: too few questions to divide.
    """
    hashes = {text: hashlib.sha256(text.encode()).hexdigest() for text in set(questions.texts(column))}
    if len(hashes) < LEAST_ROWS:
        raise DataError(
            f"{questions.path}: {len(hashes)} questions, expected at least {LEAST_ROWS}, to train on some and hold out others"
        )
    count = min(max(1, round(HELD_OUT_SHARE * len(hashes))), HELD_OUT_MOST)
    chosen = set(sorted(hashes, key=hashes.__getitem__)[:count])
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for row in questions.rows:
        sides[text_at(row, column) in chosen].append(row)
    return sides


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """As JSONL."""
    with whole_file(path) as temporary:
        lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
