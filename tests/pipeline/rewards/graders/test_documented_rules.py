"""Every row of the table of rules in docs/grading.md, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.rewards.graders.maths import math_verify
from pipeline.rewards.items import Score

DOCS = Path(__file__).parents[4] / "docs" / "grading.md"
SETTING = re.compile(r"`(extract|precision|strict|reading): ([^`]+)`")


def rules() -> list[Any]:
    """(settings, completion, reference, reward) of each row."""
    section = DOCS.read_text("utf-8").split("### math_verify\n")[1].split("\n### ")[0]
    table = section.split("| rule | completion | reference | reward |\n")[1].split("\n\n")[0]
    rows, rule = [], ""
    for line in table.splitlines()[1:]:
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert len(cells) == 4, line
        rule = cells[0] or rule
        completion, reference = (cell.removeprefix("`").removesuffix("`") for cell in cells[1:3])
        settings = {name: yaml.safe_load(value) for name, value in SETTING.findall(cells[0])}
        rows.append(pytest.param(settings, completion.replace("⏎", "\n"), reference, float(cells[3]), id=f"{rule}: {cells[1]}"))
    return rows


@pytest.mark.parametrize(("settings", "completion", "reference", "reward"), rules())
def test_rule(settings: dict[str, Any], completion: str, reference: str, reward: float) -> None:
    said = math_verify(completion, reference, {}, **settings)
    assert isinstance(said, Score)
    assert said.score == reward, said.remark
