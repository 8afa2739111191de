"""Every grader on a few real rows, before anything is generated: the right answer in the usual ways, and an empty one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Any

from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.rewards.pool import RewardPool
from pipeline.rewards.probing.dresses import Dress, dresses_of
from pipeline.rewards.probing.replies import askable, error_of
from pipeline.rewards.probing.rows import ProbeRow, row_of, spread

ROWS = 3
"""Rows that graders are asked about."""
SECONDS = 20.0
"""How long a first look may take, once the graders are ready."""
SHOWN = 60
"""Characters of a text that is shown."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one grader gave to one text."""

    row: ProbeRow
    text: str
    is_right: bool
    """A right answer, or an empty one."""
    score: float | None
    """None: it does not apply, or there is an error."""
    error: str | None


def first_look(config: RewardConfig, prompts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Ask each grader about a few rows.

    Args:
        prompts: rows of `schemas.Prompts`, at least one.

    Returns:
        Lines, each with its name: graded (what a grader gave), skipped (one that is not asked), warning.

    Raises:
        UserError: a grader cannot be used as it is configured.
        StageFailed: a worker ends before it is ready.
    """
    asked, skipped = askable(config)
    lines = [("graded", f"{column}: {why}") for column, why in skipped.items()]
    if asked is None:
        return lines
    rows = [row_of(prompt) for prompt in spread(prompts, ROWS)]
    found = _asked(asked.model_copy(update={"workers": 1}), rows)
    for component in asked.components:
        place = f"reward.components.{config.components.index(component)} ({component.grader})"
        said = found[component.column]
        lines.append(("graded", f"{component.column}: {_told(said)}"))
        alone = len(config.components) == 1
        lines += [("warning", f"{place}: {warning}") for warning in _warnings(component, said, alone=alone)]
    return lines


def _asked(config: RewardConfig, rows: Sequence[ProbeRow]) -> dict[str, list[Said]]:
    """What each grader said, by its column, as far as there was time."""
    dresses = sorted(dresses_of(config.components), key=lambda dress: not dress.is_plain)
    found: dict[str, list[Said]] = {component.column: [] for component in config.components}
    with RewardPool(config) as pool:
        deadline = time.monotonic() + SECONDS
        jobs = [(row, text, right, pool.submit([row.item(text)])) for row in rows for text, right in _texts(row, dresses)]
        for row, text, right, job in jobs:
            if not wait([job], deadline - time.monotonic()).done:
                break
            (result,) = job.result()
            for column, said in found.items():
                said.append(Said(row, text, right, result.components.get(column), error_of(result, column)))
    return found


def _texts(row: ProbeRow, dresses: Sequence[Dress]) -> Iterator[tuple[str, bool]]:
    """The reference and an empty answer first: they say most, should there be no time for all."""
    yield row.reference, True
    yield "", False
    yield from ((dress.around(row.answer), True) for dress in dresses if not dress.is_plain)


def _by_row(said: Sequence[Said]) -> dict[ProbeRow, tuple[Said, Said | None]]:
    """Of each row the right answer that got most, and the empty one, if there was time for it."""
    found = {}
    for row in dict.fromkeys(each.row for each in said):
        of_row = [each for each in said if each.row is row]
        best = max((e for e in of_row if e.is_right), key=lambda e: -math.inf if e.score is None else e.score)
        found[row] = best, next((each for each in of_row if not each.is_right), None)
    return found


def _told(said: Sequence[Said]) -> str:
    rows = _by_row(said)
    if not rows:
        return f"no answer within {SECONDS:g} s"
    best, empty = [best for best, _ in rows.values()], [empty for _, empty in rows.values() if empty is not None]
    written = next((f" ({_short(each.text)})" for each in best if each.score is not None), "")
    return f"the right answer {_scores(best)}{written}, an empty one {_scores(empty)}, on {len(rows)} prompts"


def _scores(said: Sequence[Said]) -> str:
    """
    >>> _scores([Said(None, "", True, 1.0, None), Said(None, "", True, None, "KeyError")])
    '1 or an error'
    """
    if not said:
        return "not in time"
    known = sorted({f"{each.score:g}" for each in said if each.score is not None}, key=float)
    known += ["nothing"] * any(each.score is None and each.error is None for each in said)
    known += ["an error"] * any(each.error is not None for each in said)
    return f"{known[0]} to {known[-1]}" if len(known) > 2 else " or ".join(known)


def _warnings(component: RewardComponent, said: Sequence[Said], *, alone: bool) -> Iterator[str]:
    rows = _by_row(said)
    if not rows:
        yield f"gave no answer within {SECONDS:g} s. Completions that take as long cost the run that time each, and their reward"
        return
    for best, _ in rows.values():
        if best.score is None and best.error is not None:
            yield f"fails on the right answer {_of(best)}: {best.error}. {FAILS}"
            return
    for _, empty in rows.values():
        if empty is not None and empty.error is not None:
            yield f"fails on an empty answer to prompt {empty.row.name!r}: {empty.error}. {FAILS}"
            return
    same = [(best, empty) for best, empty in rows.values() if empty and _is_no_more(component, best, empty, alone)]
    for best, empty in same[:1]:
        what = "as much as" if best.score == empty.score else "more than"
        yield (
            f"gives an empty answer {what} the right one: {empty.score:g} and {best.score:g} on prompt {best.row.name!r}, whose "
            f"answer is {_short(best.row.answer)}, however that was written ({len(same)} of {len(rows)} prompts). {SILENT}"
        )


FAILS = (
    "Completions like it have no reward (status reward_error), and where they are more than reward.max_failed_share the run "
    "stops. Mend the grader, or the data"
)
SILENT = (
    "Rewards that are all the same teach nothing. If it waits for a form of its own, `rollbook probe CONFIG --written "
    "'Final: {answer}'` asks it so; if it rewards something else, or references are no answers (tests, rubrics), go on"
)


def _is_no_more(component: RewardComponent, best: Said, empty: Said, alone: bool) -> bool:
    """Whether a right answer earns no more than an empty one. Beside other graders a lower score may be what is wanted."""
    if best.score is None or empty.score is None or component.weight == 0:
        return False
    return best.score == empty.score or (alone and component.weight * best.score < component.weight * empty.score)


def _of(said: Said) -> str:
    return f"to prompt {said.row.name!r} ({_short(said.row.answer)})"


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")
