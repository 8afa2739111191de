"""Completions and tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pipeline.common.errors import UserError
from pipeline.common.text import ABSENT, json_safe, number, visible
from pipeline.look.show.completions import Completion, Selection, described_role
from pipeline.look.show.subject import Use
from pipeline.look.show.tokens import By, completion_text, legend, spoken
from pipeline.store import Artifact
from pipeline.store.space import readable

ONE_LINE = 160
"""Characters of a text in a list."""
WIDE = 8
"""Tables with more columns are turned: a column of the terminal for each of their rows."""


def selection_list(found: Selection) -> RenderableType:
    """One line per completion, and below how many there are."""
    return Group(_selected(found), *notes(found), summary_line(found))


def _selected(found: Selection) -> Table:
    """One line per completion."""
    several = len({completion.answers.name for completion in found.shown}) > 1
    longest = min(max((len(completion.row["prompt_id"]) for completion in found.shown), default=0), 24)
    widths = [("iter", -4), *([("of", 8)] if several else []), ("prompt", max(longest, 6)), ("n", -2)]
    table = _list(*widths, ("reward", -6), ("adv", -6), ("tokens", -6), ("status", 9), ("completion", 0))
    for completion in found.shown:
        row = completion.row
        cells = [str(row["policy_version"]), *([completion.answers.name] if several else []), one_line(row["prompt_id"])]
        cells += [str(row["sample_index"]), number(row["reward"]), number(row["advantage"]), str(row["tokens"]), row["status"]]
        table.add_row(*(Text(one_line(text)) for text in (*cells, row["completion_text"])))
    return table


def opening(best: Selection, worst: Selection) -> RenderableType:
    """What a run opens on: the best and the worst that its newest policy wrote, each of another group."""
    iteration = best.shown[0].row["policy_version"]
    if best.reward_mean is None or best.shown[0].row["reward"] == worst.shown[0].row["reward"]:
        title = Text(
            f"iteration {iteration}, one completion of each group; all rewards are {number(best.shown[0].row['reward'])}"
        )
        return Group(title, selection_list(best))
    about = f"{best.matched:,} completions of iteration {iteration}, mean reward {number(best.reward_mean)}"
    more = Text(f"{about}; -i N shows another iteration, --sort reward all of one, --full whole texts", style="dim")
    heads = [Text(f"iteration {iteration}, {which}", style="bold") for which in ("highest rewards", "lowest rewards")]
    return Group(heads[0], _selected(best), Text(""), heads[1], _selected(worst), *notes(best), more)


def notes(found: Selection) -> list[Text]:
    """Why something is not shown."""
    return [Text(visible(note), style="dim") for note in dict.fromkeys(c.answers.note for c in found.shown) if note]


def _list(*columns: tuple[str, int]) -> Table:
    """A table of one-line rows: widths in characters, negative ones for numbers, and 0 for what takes the rest of the line."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, expand=True)
    for name, width in columns:
        table.add_column(
            name,
            width=abs(width) or None,
            ratio=None if width else 1,
            justify="right" if width < 0 else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    return table


def summary_line(found: Selection) -> Text:
    """How many completions matched, of how many, and their mean reward."""
    what = f"{found.matched:,} of {found.there:,} completions" if found.matched != found.there else f"{found.there:,} completions"
    more = f"; the first {len(found.shown)} are shown (--rows)" if found.matched > len(found.shown) else ""
    return Text(f"{what}, mean reward {number(found.reward_mean)}{more}", style="dim")


def in_full(found: Selection, by: By) -> RenderableType:
    """Every completion with its prompt, its tokens colored."""
    parts: list[RenderableType] = []
    before = None
    for completion in found.shown:
        row = completion.row
        if (group := (completion.answers.name, row["group_id"])) != before:
            before = group
            answer = f"  answer: {one_line(row['answer'])}" if row["answer"] is not None else ""
            title = Text(f"{one_line(row['prompt_id'])}, iteration {row['policy_version']}, {completion.answers.name}{answer}")
            parts += [
                Rule(title, align="left", style="dim"),
                Padding(Text(visible(row["prompt_text"]), style="bold"), (0, 0, 0, 2)),
            ]
        parts += [facts(completion), *spoken(completion, by)]
    return Group(*parts, Text(""), *filter(None, [legend(by)]), *notes(found), summary_line(found))


def facts(completion: Completion, named: bool = False) -> Text:
    """Figures of one completion on a line.

    Args:
        named: say of which set it is.
    """
    row = completion.row
    scores = [f"{name.removeprefix('reward_')} {number(value)}" for name, value in row.items() if name.startswith("reward_")]
    number_of_it = f"{completion.answers.name} #{row['sample_index']}" if named else f"#{row['sample_index']}"
    role = described_role(row)
    parts = [
        number_of_it,
        *([one_line(role)] if role else []),
        f"reward {number(row['reward'])}",
        *(scores if len(scores) > 1 else []),
    ]
    if row["advantage"] is not None:
        parts.append(f"advantage {row['advantage']:+.3g}")
    parts += [row["status"], f"{row['tokens']} tokens", f"mean logprob {number(row['logprob'])}"]
    text = Text(visible("  ".join(parts)), style="dim")
    return text.append(f"  {one_line(row['error'])}", style="red") if row["error"] else text


def side_by_side(left: Selection, right: Selection, by: By) -> RenderableType:
    """Two iterations' answers to one prompt, sample by sample.

    Raises:
        UserError: one of them has none.
    """
    if not left.shown or not right.shown:
        raise UserError(
            "the prompt was not answered in both iterations; `--of sampled` has prompts that every checkpoint answers"
        )
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=True, padding=(0, 2, 0, 0))
    for side in (left, right):
        names = ", ".join(dict.fromkeys(completion.answers.name for completion in side.shown))
        table.add_column(f"iteration {side.shown[0].row['policy_version']}, {names}", ratio=1)
    several = len({completion.answers.name for side in (left, right) for completion in side.shown}) > 1
    sides = [{(c.answers.name, c.row["sample_index"]): c for c in side.shown} for side in (left, right)]
    for key in sorted(sides[0] | sides[1]):
        pair = [side.get(key) for side in sides]
        table.add_row(*(Group(facts(c, several), completion_text(c, by), Text("")) if c else Text(ABSENT) for c in pair))
    row = left.shown[0].row
    title = Text(f"{one_line(row['prompt_id'])}  answer: {one_line(row['answer'] or ABSENT)}")
    question = Padding(Text(visible(row["prompt_text"]), style="bold"), (0, 0, 0, 2))
    return Group(Rule(title, align="left", style="dim"), question, table, *filter(None, [legend(by)]))


def completion_json(completion: Completion) -> dict[str, Any]:
    """A completion for machines."""
    turns = {"turns": [asdict(turn) for turn in completion.turns]} if completion.turns else {}
    safe: dict[str, Any] = json_safe({"set": completion.answers.name, **completion.row, **turns})
    return safe


def artifact_head(artifact: Artifact) -> RenderableType:
    """What an artifact is, in a few lines."""
    content, provenance = artifact.manifest.content, artifact.manifest.provenance
    lines = [
        (f"{artifact.kind} ", f"{artifact.id[:16]}  made by {content.stage}, {provenance.created}"),
        ("at ", artifact.url),
        ("from ", ", ".join(f"{parent.role} {parent.id[:8]}" for parent in content.parents) or "nothing"),
        ("summary ", ", ".join(f"{name} {_short(value)}" for name, value in artifact.summary.items()) or "none"),
    ]
    return Text("\n").join(Text.assemble((name, "dim"), visible(value)) for name, value in lines)


def artifact_list(uses: Sequence[Use]) -> Table:
    """One line per artifact."""
    table = _list(("artifact", 29), ("made", 16), ("size", -8), ("summary", 0))
    for artifact in sorted({use.artifact.url: use.artifact for use in uses}.values(), key=lambda a: (a.kind, _made(a))):
        summary = ", ".join(f"{name} {_short(value)}" for name, value in artifact.summary.items() if not isinstance(value, dict))
        size = readable(sum(file.bytes for file in artifact.files))
        name = "/".join(artifact.url.rsplit("/", 2)[1:])
        table.add_row(*(Text(visible(cell)) for cell in (name, _made(artifact)[:16], size, summary)))
    return table


def _made(artifact: Artifact) -> str:
    return artifact.manifest.provenance.created


def plain_table(rows: pl.DataFrame, first: int = 0) -> Table:
    """Any table. One with many columns is turned, so that its columns are lines."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    cells = [[cell(value) for value in row] for row in rows.iter_rows()]
    if len(rows.columns) <= WIDE:
        for name, kind in rows.schema.items():
            table.add_column(Text(visible(name)), justify="right" if kind.is_numeric() else "left", overflow="fold")
        for row in cells:
            table.add_row(*row)
        return table
    table.add_column("")
    for place in range(len(cells)):
        table.add_column(f"row {first + place}", justify="right", overflow="fold")
    for place, name in enumerate(rows.columns):
        table.add_row(Text(visible(name), style="dim"), *(row[place] for row in cells))
    return table


def cell(value: Any) -> Text:
    """A value of any table on one line."""
    if isinstance(value, pl.Series):
        value = value.to_list()
    if isinstance(value, list):
        shown = ", ".join(_short(item) for item in value[:4])
        return Text(f"[{one_line(shown)}{', …' if len(value) > 4 else ''}]" + (f" {len(value)}" if len(value) > 4 else ""))
    return Text(one_line(_short(value)))


def one_line(text: str) -> str:
    """The beginning of a text, harmless and without line breaks.

    >>> one_line("a\\nb\\x1b[2J")
    'a⏎b‹U+001B›[2J'
    """
    cut = text[:ONE_LINE] + ("…" if len(text) > ONE_LINE else "")
    return visible(cut).replace("\n", "⏎").replace("\t", "⇥")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(item)}" for key, item in value.items()) + "}"
    return ABSENT if value is None else str(value)


def json_rows(rows: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Rows of any table for machines."""
    for row in rows.to_dicts():
        yield {
            name: value if isinstance(value, bool | int | float | str | list | dict | None) else str(value)
            for name, value in row.items()
        }
