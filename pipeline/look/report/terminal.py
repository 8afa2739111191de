"""A run in the terminal: one row per iteration."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.common.text import count, duration, interval, number, percent, visible
from pipeline.run.state import Run
from pipeline.run.status import status

COLUMNS = ("iteration", "pass@1", "greedy", "reward", "KL to behavior", "tokens", "generate", "train")
SHORT = {"iteration": "iter", "KL to behavior": "KL"}
"""Names that fit 80 columns."""
MAY_BREAK = ("pass@1", "generate", "train")
"""Columns whose cells go on in a second line where the terminal is too narrow; nothing is cut off."""


def iteration_table(run: Run) -> Table:
    """One row per iteration; a dash for what is not there yet or not defined.

    pass@1 and greedy accuracy are those of the iteration's policy on held-out prompts, reward and tokens those of its
    training rollouts, KL that of the training that followed.
    """
    now = status(run)
    table = Table(
        title=Text(now["name"]), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True
    )
    for name in COLUMNS:
        table.add_column(SHORT.get(name, name), justify="right", no_wrap=name not in MAY_BREAK)
    for row in now["iterations"]:
        table.add_row(*(Text(cell) for cell in iteration_cells(row)))
    return table


def closing_lines(run: Run) -> list[str]:
    """What follows the table: where the run stands, its best checkpoint, and what to look at.

    A record of a stranger's steers no terminal.
    """
    now = status(run)
    best = now["best"]
    if now["stopped"]:
        lines = [f"stopped:   after iteration {now['stopped']['iteration']}: {now['stopped']['why']}"]
    else:
        lines = [f"next:      {now['missing'] or 'nothing, the run is complete'}"]
    lines += [f"set:       {line}" for line in _sets(now["iterations"])]
    if best:
        lines.append(f"best:      iteration {best['iteration']}, {best['checkpoint']['path']}")
    lines += [f"warning:   {warning}" for warning in now["warnings"]]
    return [visible(line) for line in lines]


def _sets(rows: list[dict[str, Any]]) -> list[str]:
    """What each held-out set says of the newest checkpoint that it judged, beside the first one."""
    found = []
    for name in dict.fromkeys(name for row in rows for name in row["sets"]):
        first, *later = [row for row in rows if name in row["sets"]]
        last = later[-1] if later else first
        value = last["sets"][name]
        before = f", from {percent(first['sets'][name]['pass_at_1'])} at {first['iteration']}" if later else ""
        now = interval(value["pass_at_1"], value["pass_at_1_low"], value["pass_at_1_high"])
        found.append(f"{name}: pass@1 {now}, greedy {percent(value['greedy_accuracy'])} at iteration {last['iteration']}{before}")
    return found


def iteration_cells(row: dict[str, Any]) -> list[str]:
    """The cells of one iteration of `status`, in the order of COLUMNS."""
    return [
        str(row["iteration"]),
        interval(row["pass_at_1"], row["pass_at_1_low"], row["pass_at_1_high"]),
        percent(row["greedy_accuracy"]),
        number(row["reward_mean"]),
        number(row["kl_behavior"]),
        count(row["tokens"]),
        duration(row["seconds"]["generate"]),
        duration(row["seconds"]["train"]),
    ]
