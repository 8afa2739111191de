"""What a report says of a run in words, and where that came from."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from pipeline.look.report import beside, curves, figures, made, readings, verdict
from pipeline.look.report.readings import Readout
from pipeline.run.state import Run
from pipeline.store import Request, Store, Work


@pytest.mark.parametrize(("module", "examples"), [(made, 3), (readings, 1), (beside, 4)])
def test_examples_in_docstrings(module: object, examples: int) -> None:
    assert doctest.testmod(module) == (0, examples)  # type: ignore[arg-type]


def test_before_two_evaluations_there_is_no_verdict(make_run: Callable[..., Run]) -> None:
    says = verdict.verdict(make_run(missing="evaluate 0")).says
    assert says == "Not judged yet: no held-out pass@1 has been evaluated."
    says = verdict.verdict(make_run(missing="train 0")).says
    assert says == "Not judged yet: only the base model is evaluated, with a pass@1 of 25.0 %."


def test_a_fall_says_which_policy_was_best(run: Run) -> None:
    steps = [replace(step, evaluation=other.evaluation) for step, other in zip(run.iterations, run.iterations[::-1], strict=True)]
    found = verdict.verdict(replace(run, iterations=steps))
    assert found.way == "down"
    assert found.says.startswith("Held-out pass@1 fell by 30.0 points (95 % interval -3")
    assert found.says.endswith(
        "from 55.0 % with the base model to 25.0 % after iteration 2. It was best with the base model: 55.0 %."
    )


def test_other_work_beside_a_stage_is_read_from_its_notes(store: Store) -> None:
    made_beside = []
    for cores in (0.1, 1.5, None):
        with store.work(Request("shaped", "test/1", {"cores": cores})) as work:
            assert isinstance(work, Work)
            made_beside.append(work.finish({}, notes={} if cores is None else {"other_work": cores}))
    assert beside.busiest(made_beside) == 1.5
    assert beside.busiest(made_beside[2:]) is None


def test_no_change_is_no_gain(run: Run) -> None:
    steps = [replace(step, evaluation=run.iterations[0].evaluation) for step in run.iterations]
    found = verdict.verdict(replace(run, iterations=steps))
    assert found.way == "even"
    assert found.says.startswith("Held-out pass@1 is not known to have changed: +0.0 points (95 % interval +0.0 to +0.0)")


def test_a_figure_that_never_changes_is_folded_and_said(run: Run) -> None:
    found = curves.read_curves(run)
    assert found is not None
    flat = curves.Curves(found.frame.with_columns(clip_fraction_positive=pl.lit(0.0), clip_fraction_negative=pl.lit(0.0)))
    quiet = {panel.title: panel.quiet for panel in curves.training_section(flat).panels}
    assert quiet.pop("Clip fraction") == "0 throughout"
    assert not any(quiet.values())


def test_an_axis_of_one_value_has_one_tick() -> None:
    x, zero = np.arange(3.0), np.zeros(3)
    picture = figures.svg("flat", lambda axes: figures.line(axes, x, zero, figures.SERIES[0]), x_label="step")
    assert "-0.0" not in picture and "0.0" not in picture.split("step")[1]


def test_what_is_told_of_a_plot_is_data_and_never_markup() -> None:
    x = np.arange(2.0)
    hostile = Readout('"><script>alert(1)</script>\u202e', "s0", x, np.array([np.nan, 1.0]))
    picture = figures.svg("told", lambda axes: figures.line(axes, x, x, figures.SERIES[0]), x_label="step", readings=[hostile])
    assert "<script" not in picture and "\u202e" not in picture
    assert "[null,1]" in picture
