"""A run as Markdown, for a pull request or an issue."""

from __future__ import annotations

from pipeline.common.text import visible
from pipeline.look.report.terminal import COLUMNS, closing_lines, iteration_cells
from pipeline.run.state import Run
from pipeline.run.status import status

SETTINGS = (
    "model.path",
    "train.algorithm",
    "train.epochs",
    "train.learning_rate",
    "generate.prompts",
    "generate.samples",
    "seed",
)
"""What is said of a run beside its figures."""


def markdown(run: Run) -> str:
    """A heading, the table of iterations as in the terminal, where the run stands, and its chief settings."""
    now = status(run)
    lines = [f"### {_cell(now['name'])}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---:|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cell(cell) for cell in iteration_cells(row)) + " |" for row in now["iterations"]]
    lines += ["", *(f"- {_cell(line)}" for line in closing_lines(run))]
    settings = ", ".join(f"{key} {_setting(run, key)}" for key in SETTINGS)
    return "\n".join([*lines, f"- {_cell(settings)}", ""])


def _setting(run: Run, key: str) -> str:
    value: object = run.config
    for part in key.split("."):
        value = getattr(value, part)
    return str(value)


def _cell(text: str) -> str:
    """Text that Markdown shows as it is."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, "\\" + mark)
    return visible(text).replace("\n", " ")
