"""What was measured of reasoning-gym's data sets, and which of them a policy is not to be trained on.

`reasoning.json` holds the figures, with the version of the library that gave them; benchmarks/reasoning_sets.py measures anew.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("reasoning.json")
BEATEN = 0.5
"""Mean score that one text earns where it is not the item's answer, from which on it is said to beat the data set."""


@cache
def measured() -> dict[str, Any]:
    """{library, items, seed, command, datasets: {name: figures}}."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def figures(name: str) -> dict[str, Any] | None:
    """Of one data set; None of one that was not measured."""
    found: dict[str, Any] | None = measured()["datasets"].get(name)
    return found


def needs(name: str) -> list[str]:
    """Keys of an item's metadata without which its scorer cannot work."""
    return list((figures(name) or {}).get("needs", ()))


def runs_completions(name: str) -> bool:
    """Whether the scorer executes what the model wrote, as Python."""
    return "completion" in (figures(name) or {}).get("evaluates", ())


def weaknesses(name: str) -> list[str]:
    """Why a policy that is trained on this data set may learn something else; [] where nothing is known."""
    found = figures(name)
    if found is None:
        return []
    said = []
    if found["constant"] - found["constant_right"] >= BEATEN:
        said.append(f"the answer {found['constant_text']!r} earns {found['constant']:g} on average, whatever the question")
    if runs_completions(name):
        said.append("the scorer executes the completion as Python code")
    if found["unseeded"]:
        said.append("its items do not follow from the seed")
    if found["hash_seed"]:
        said.append("its items change with PYTHONHASHSEED")
    return said
