"""docs/metrics.md explains every figure that is logged: those of real artifacts, of tables, and the names that trackers have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest

from pipeline.generate.turns import figures_of
from pipeline.generate.unknowns import OF_ORIGINS, OF_ROLLOUTS
from pipeline.look.trackers.series import EVALUATED, NOT_FIGURES
from schemas import Comparison, ComparisonTiming, Metrics, Timing, Turns

PAGE = Path(__file__).parents[4] / "docs" / "metrics.md"
SECTIONS = {"checkpoint": "Training, in sum", "rollouts": "Generation", "shaped": "Shaping", "evaluation": "Evaluation"}
"""Where the figures of a kind of artifact are explained."""
SOMETIMES = {
    "checkpoint": {"optimizer_steps", "nothing_to_train"},
    "rollouts": {*OF_ROLLOUTS, *OF_ORIGINS, "episodes"},
    "shaped": {"only_reward"},
    "evaluation": set(),
}
"""Figures that not every artifact of a kind has."""


def section(title: str) -> str:
    return PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def explained(text: str) -> set[str]:
    """Names in the first column of the tables."""
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_every_figure_of_a_step_is_explained_and_no_other() -> None:
    logged = {*Metrics.columns(), *Timing.columns()} - set(NOT_FIGURES)
    assert explained(section("Training, each optimizer step")) == logged


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_figure_in_the_summary_of_an_artifact_is_explained_and_no_other(made: Path, kind: str) -> None:
    manifests = [json.loads(path.read_text(encoding="utf-8")) for path in made.glob(f"artifacts/{kind}/*/manifest.json")]
    logged = {name for manifest in manifests for name in manifest["content"]["summary"]}
    text = section(SECTIONS[kind])
    above = set(re.findall(r"`(\w+)`", text.split("\n|")[0]))
    assert logged
    assert logged <= explained(text) | above
    assert explained(text) <= logged | SOMETIMES[kind]


def test_every_figure_of_episodes_is_explained() -> None:
    none = pl.DataFrame(schema={name: column.dtype for name, column in Turns.columns().items() if name in ("who", "status")})
    (row,) = [line for line in section("Generation").splitlines() if line.startswith("| `episodes` |")]
    assert set(figures_of(none.with_columns(length=pl.lit(0)))) <= set(re.findall(r"`(\w+)`", row))


def test_every_name_that_trackers_have_is_explained() -> None:
    text = section("Names with a tracker")
    assert {f"eval/{name}" for name in EVALUATED} == set(re.findall(r"`(eval/[a-z_0-9]+)`", text))
    assert "`iteration`" in text and "`scheduled/SETTING`" in text


def test_every_figure_of_a_comparison_is_explained() -> None:
    text, training = section("Comparisons"), explained(section("Training, each optimizer step"))
    others = explained(section("Evaluation")) | explained(section("Training, in sum"))
    figures = {name.removesuffix("_low").removesuffix("_high") for name in Comparison.columns() if not name.endswith("_id")}
    named = {*Comparison.primary_key(), "algorithm", "status", "error"}
    assert figures - named - training - others <= explained(text)
    assert set(ComparisonTiming.columns()) - set(ComparisonTiming.primary_key()) <= explained(text)


def test_every_row_says_what_is_healthy_and_what_to_do() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    assert all(len(row) == 5 and all(row) for row in cells)
