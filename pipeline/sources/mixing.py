"""A prompts source: one set, or several mixed by their shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from pipeline.config.data import PromptSource, QuestionSet
from pipeline.sources.dialogues import shared_questions
from pipeline.sources.sets import Misfits, SetRows, read_set, refuse_bad
from schemas import SetAside


class Sifted(NamedTuple):
    """A source's rows."""

    good: pl.DataFrame
    """prompt_id, question, answer, metadata."""
    bad: pl.DataFrame
    """The others: rows of a `SetAside` table, in the order of the source."""


def load(source: PromptSource, misfits: Misfits | None = None) -> Sifted:
    """Split a source into rows that fit and rows that do not. Of sets that are mixed, a question is the first's that has it.

    Args:
        misfits: says which prompts do not fit.

    Raises:
        UserError: no such file or column, or an expression that cannot be asked.
        DataError: a row does not fit and the source does not set such rows aside, or none fits; names file, row and column.
    """
    before: list[tuple[QuestionSet, SetRows]] = []
    aside = []
    for one in source.sets:
        rows = _only_here(read_set(one, misfits), before)
        refuse_bad(one, rows)
        place = f"{one.path}, {rows.unit}" if before else rows.unit
        aside += [(f"{place} {row.number}", row.reasons, row.content) for row in rows.bad]
        before.append((one, rows))
    counts = [min(one.limit or len(rows.good), len(rows.good)) for one, rows in before]
    if source.share is not None:
        counts = shared_out(counts, [one.share or 0.0 for one in source.sets])
    good = pl.concat([rows.drawn(count, one.lot) for (one, rows), count in zip(before, counts, strict=True)])
    return Sifted(good, pl.DataFrame(aside, schema=dict.fromkeys(SetAside.columns(), pl.String), orient="row"))


def shared_out(counts: Sequence[int], shares: Sequence[float]) -> list[int]:
    """How many rows of each set make the largest mix in which every set has its share: at least one.

    >>> shared_out([100, 30], [3, 1]), shared_out([100, 30], [1, 3])
    ([90, 30], [10, 30])
    """
    size = min(count / share for count, share in zip(counts, shares, strict=True))
    return [max(1, min(count, round(size * share))) for count, share in zip(counts, shares, strict=True)]


def _only_here(rows: SetRows, before: Sequence[tuple[QuestionSet, SetRows]]) -> SetRows:
    """Without questions and ids that an earlier set has."""
    for one, others in before:
        named = rows.good.with_row_index("place")
        asked = shared_questions(named, others.good)["place"].to_list()
        ids = named.join(others.good, on="prompt_id", how="semi")
        why = {place: f"prompt_id {name!r} is also in {one.path}" for place, name in ids.select("place", "prompt_id").iter_rows()}
        rows = rows.without(why | dict.fromkeys(asked, f"its question is also in {one.path}"))
    return rows
