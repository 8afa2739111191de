"""Methods of papers as configs: what `rollbook init --recipe` takes from one, and what it leaves to the user's own answers."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.common.errors import UserError

RECIPES = Path(__file__).parents[2] / "configs" / "recipes"
OWN = ("name", "model", "data", "reward", "evaluate")
"""Sections that are the user's; all others are the recipe's."""
FITTED = ("max_tokens", "learning_rate", "shard_groups")
"""Settings that depend on the model and the data, which the user's config has whatever the recipe says."""
_SECTION = re.compile(r"^([a-z_]+):", re.MULTILINE)


def recipe_names() -> list[str]:
    """Recipes that are there; none in an installation without the configs of a checkout."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_text(name: str) -> str:
    """
    Raises:
        UserError: no such recipe.
    """
    names = recipe_names()
    if name not in names:
        there = f"there are {', '.join(names)}" if names else f"recipes come with a checkout, and {RECIPES} has none"
        raise UserError(f"--recipe {name}: no such recipe; {there}")
    return (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")


def with_recipe(config: str, recipe: str) -> str:
    """A config's text with the sections of a recipe in place of its own, comments included.

    >>> print(with_recipe("# mine\\nname: a\\ntrain:\\n  learning_rate: 1\\n", "name: b\\ntrain:\\n  learning_rate: 9  # 8\\n"))
    # mine
    name: a
    <BLANKLINE>
    train:
      learning_rate: 1  # 8
    <BLANKLINE>
    """
    ours, theirs = _sections(config), _sections(recipe)
    method = {name: _fitted(text, config) for name, text in theirs.items() if name not in ("", *OWN)}
    sections = {name: text for name, text in ours.items() if name != "evaluate"} | method
    sections |= {name: text for name, text in ours.items() if name == "evaluate"}
    head, name, *rest = (text.strip("\n") for text in sections.values())
    return "\n\n".join([f"{head}\n{name}", *rest]) + "\n"


def _fitted(section: str, config: str) -> str:
    """A recipe's section with the user's values where they depend on the model and the data."""
    for setting in FITTED:
        line = re.compile(rf"^( +{setting}: )([^ \n]+)", re.MULTILINE)
        if found := line.search(config):
            section = line.sub(rf"\g<1>{found[2]}", section)
    return section


def _sections(text: str) -> dict[str, str]:
    """A config's parts by their first key, each with the comments right above it; what comes before the first key is ''."""
    starts = [(match[1], match.start()) for match in _SECTION.finditer(text)]
    places = [starts[0], *((name, _with_comments(text, start)) for name, start in starts[1:])]
    ends = [start for _, start in places[1:]] + [len(text)]
    return {"": text[: places[0][1]]} | {name: text[start:end] for (name, start), end in zip(places, ends, strict=True)}


def _with_comments(text: str, start: int) -> int:
    """Where the comments right above a line begin."""
    before = text[:start].splitlines(keepends=True)
    while before and before[-1].startswith("#"):
        start -= len(before.pop())
    return start
