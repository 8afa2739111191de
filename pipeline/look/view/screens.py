"""The screens: a list of completions, one group side by side, and two iterations of one prompt. All state is in the address."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup

from pipeline.common.errors import UserError
from pipeline.common.text import count, number, visible
from pipeline.look.show.completions import described_role
from pipeline.look.view.parts import ViewPart
from pipeline.look.view.pool import RowPool
from pipeline.look.view.shading import choices, legend, shaded

ROWS = 50
"""Completions of one page of the list."""
MOST_SIDE_BY_SIDE = 16
"""Completions of a group, or of a prompt, on one page."""
LAST_ROW = 10**12
SORTABLE = ("iteration", "reward", "advantage", "tokens", "logprob")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Screen:
    """A page, and how it went."""

    status: int
    html: str


class Screens:
    """Makes the pages of a pool of rows.

    Args:
        pool: what is looked at.
        title: what it is called.
    """

    def __init__(self, pool: RowPool, title: str) -> None:
        self._pool, self._title = pool, title
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=harmless,
        )
        self._style = (_HERE / "view.css").read_text(encoding="utf-8")
        self._environment.globals |= {
            "style": Markup(self._style),
            "title": title,
            "number": number,
            "count": count,
            "address": address,
            "quoted": quoted,
            "sortable": SORTABLE,
        }

    @property
    def policy(self) -> str:
        """The pages' Content-Security-Policy: our style sheet, forms of our own, and nothing else."""
        digest = base64.b64encode(hashlib.sha256(self._style.encode()).digest()).decode()
        return f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

    def prepare(self) -> None:
        """Have what the first screen needs at hand: its templates, and the files of its rows checked.

        Raises:
            DataError, IntegrityError: a table cannot be read.
        """
        self._pool.page("", "", 0, ROWS)
        self.show("", {})

    def show(self, name: str, asked: Mapping[str, str]) -> Screen | None:
        """The screen of an address; None where there is none.

        Args:
            name: the end of its path.
            asked: its query.
        """
        make = {"": self._list, "group": self._group, "sides": self._sides}.get(name)
        if make is None:
            return None
        try:
            return make(asked)
        except UserError as error:
            return self._render("refused.html.j2", 400, why=str(error), asked=asked)

    def _render(self, template: str, status: int = 200, **values: Any) -> Screen:
        return Screen(status, self._environment.get_template(template).render(**values))

    def _list(self, asked: Mapping[str, str]) -> Screen:
        text, sort = asked.get("q", "").strip(), asked.get("sort", "")
        page = _whole_number(asked, "page", 1)
        problem, matched = None, 0
        rows: list[dict[str, Any]] = []
        try:
            rows, matched = self._pool.page(text, sort, (page - 1) * ROWS, ROWS)
        except UserError as error:
            problem = str(error)
        return self._render(
            "list.html.j2",
            400 if problem else 200,
            rows=rows,
            matched=matched,
            total=self._pool.total,
            parts=self._pool.parts,
            columns=self._pool.columns.values(),
            problem=problem,
            q=text,
            sort=sort,
            page=page,
            pages=max(-(-matched // ROWS), 1),
            first=(page - 1) * ROWS,
        )

    def _group(self, asked: Mapping[str, str]) -> Screen:
        here = self._pool.part(asked.get("of", ""))
        part, group = self._pool.parts[here], asked.get("group", "")
        rows = self._pool.group(here, group)
        if not rows:
            raise UserError("there is no such group in these rollouts")
        page = _whole_number(asked, "page", 1)
        shown = rows[(page - 1) * MOST_SIDE_BY_SIDE : page * MOST_SIDE_BY_SIDE]
        by = _by(asked, [part])
        return self._render(
            "group.html.j2",
            part=part,
            group=group,
            rows=rows,
            cards=[self._card(row, part, by, asked) for row in shown],
            head=rows[0],
            by=by,
            choices=choices(part),
            legend=legend(by),
            asked=asked,
            page=page,
            pages=-(-len(rows) // MOST_SIDE_BY_SIDE),
            others=self._others(part),
        )

    def _sides(self, asked: Mapping[str, str]) -> Screen:
        prompt = asked.get("prompt", "")
        numbers = [self._pool.part(asked.get(side, "")) for side in ("a", "b")]
        parts = [self._pool.parts[number] for number in numbers]
        by = _by(asked, parts)
        sides = []
        for here, part in zip(numbers, parts, strict=True):
            rows = self._pool.prompt(here, prompt, MOST_SIDE_BY_SIDE)
            rewards = [row["reward"] for row in rows if row["reward"] is not None]
            mean = sum(rewards) / len(rewards) if rewards else None
            sides.append((part, rows, mean, [self._card(row, part, by, asked) for row in rows]))
        if not any(rows for _, rows, _, _ in sides):
            raise UserError("neither of the two has this prompt")
        return self._render(
            "sides.html.j2",
            prompt=prompt,
            sides=sides,
            head=next(rows[0] for _, rows, _, _ in sides if rows),
            by=by,
            choices=list(dict.fromkeys(choice for part in parts for choice in choices(part))),
            legend=legend(by),
            asked=asked,
            parts=self._pool.parts,
            most=MOST_SIDE_BY_SIDE,
        )

    def _others(self, part: ViewPart) -> list[ViewPart]:
        """The same set of other iterations, the nearest first."""
        same = [one for one in self._pool.parts if one.set == part.set and one is not part]
        return sorted(same, key=lambda one: abs((one.iteration or 0) - (part.iteration or 0)))

    def _card(self, row: dict[str, Any], part: ViewPart, by: str, asked: Mapping[str, str]) -> dict[str, Any]:
        """One completion as the template has it."""
        name = f"{part.key}-{row['group_id']}-{row['sample_index']}"
        components = {key.removeprefix("reward_"): value for key, value in row.items() if key.startswith("reward_")}
        return {
            "row": row,
            "name": name,
            "role": described_role(row),
            "components": components if len(components) > 1 else {},
            "shown": shaded(row, part, by, whole=asked.get("whole") == name),
            "tokens": len(row["completion_token_ids"] or ()),
        }


def harmless(value: Any) -> Any:
    """What a template prints: strangers' texts with their controls and bidi marks made visible, and escaped by Jinja."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def address(name: str, asked: Mapping[str, Any], **changes: Any) -> str:
    """An address of ours with some of its query changed; what is empty or None is left out.

    >>> address("group", {"of": "3f", "page": 2}, page=None, group="a b")
    'group?of=3f&group=a+b'
    """
    query = {key: value for key, value in {**asked, **changes}.items() if value not in (None, "")}
    return (name or "./") + (f"?{urlencode(query)}" if query else "")


def quoted(text: Any) -> str:
    r"""A value as the filter reads it.

    >>> quoted('say "so"'), quoted("ok"), quoted(None), quoted(0.5)
    ('"say \\"so\\""', 'ok', 'null', '0.5')
    """
    if text is None:
        return "null"
    plain = str(text)
    if plain and plain != "null" and not set(plain) & set('"\\') and not any(c.isspace() for c in plain):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _by(asked: Mapping[str, str], parts: list[ViewPart]) -> str:
    by = asked.get("by", "logprob")
    if not any(by in choices(part) for part in parts):
        raise UserError(f"by={by}: tokens here can be shaded by {', '.join(choices(parts[0]))}")
    return by


def _whole_number(asked: Mapping[str, str], name: str, default: int) -> int:
    text = asked.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and 0 < int(text[:20]) < LAST_ROW):
        raise UserError(f"{name}: expected a number from 1 on")
    return int(text)
