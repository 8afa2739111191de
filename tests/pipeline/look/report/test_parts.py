"""Rewards, curves, examples and texts on their own."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer

from pipeline.common import text
from pipeline.look import pieces as token_pieces
from pipeline.look.pieces import pieces
from pipeline.look.report import figures, rewards
from pipeline.look.report.curves import POINTS, Curves, read_curves, training_section
from pipeline.look.report.examples import read_examples
from pipeline.look.report.rewards import reward_shares
from pipeline.run.state import Run


@pytest.mark.parametrize("module", [text, token_pieces])
def test_examples_in_docstrings(module: object) -> None:
    assert doctest.testmod(module) == (0, {text: 7, token_pieces: 1}[module])  # type: ignore[arg-type, index]


def counted(monkeypatch: pytest.MonkeyPatch, values: dict[int, list[float]]) -> rewards.RewardShares | None:
    def counts(iteration: int, artifact: list[float]) -> pl.DataFrame:
        frame = pl.DataFrame({"reward": artifact}, schema={"reward": pl.Float64})
        return frame.group_by("reward").agg(rows=pl.len()).with_columns(iteration=pl.lit(iteration)).sort("reward")

    monkeypatch.setattr(rewards, "_counts", counts)
    return reward_shares(values)  # type: ignore[arg-type]


def test_few_reward_values_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = counted(monkeypatch, {0: [0, 0, 0, 1], 2: [1, 0.5]})
    assert shares is not None
    assert shares.labels == ("0", "0.5", "1")
    assert shares.iterations.tolist() == [0, 2]
    assert shares.shares.tolist() == [[0.75, 0], [0, 0.5], [0.25, 0.5]]


def test_many_reward_values_are_cut_into_ranges_with_open_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = counted(monkeypatch, {0: [*np.linspace(0, 6, 601), 1e9]})
    assert shares is not None
    assert shares.labels[0] == "below 1.04" and shares.labels[-1] == "4.97 and above"
    assert shares.shares.sum(axis=0) == pytest.approx([1])
    assert shares.shares[:, 0] == pytest.approx([1 / 6] * 6, abs=0.01)


def test_no_rewards_give_no_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    assert counted(monkeypatch, {0: []}) is None


def test_reward_shares_count_what_is_on_disk(run: Run) -> None:
    rollouts = run.iterations[0].answers.rollouts
    shares = reward_shares({0: rollouts})
    assert shares is not None and shares.labels == ("0", "0.2", "1")
    column = pl.read_parquet(rollouts.tables("rollouts"), columns=["reward"])["reward"].drop_nulls()
    assert shares.shares[2, 0] == pytest.approx((column == 1).mean())


def test_steps_are_counted_over_the_run(run: Run) -> None:
    curves = read_curves(run)
    assert curves is not None
    assert curves.frame["x"].to_list() == list(range(36))
    assert curves.starts() == [(0, 0), (18, 1)]
    assert [x for x, _ in curves.starts("epoch")] == [0, 6, 12, 18, 24, 30]


def test_lines_break_at_values_that_are_not_finite_and_between_iterations(run: Run) -> None:
    curves = read_curves(run)
    assert curves is not None
    x, mean, _, _ = curves.drawn("loss")
    assert len(x) == 37
    assert np.flatnonzero(np.isnan(mean)).tolist() == [4, 18]


def test_long_curves_are_drawn_as_means_within_their_range() -> None:
    steps = 3 * POINTS
    values = np.arange(steps, dtype=float)
    values[1] = math.inf
    frame = pl.DataFrame({"x": np.arange(steps), "iteration": np.zeros(steps, dtype=np.int32), "loss": values})
    curves = Curves(frame)
    x, mean, low, high = curves.drawn("loss")
    assert (curves.stride, len(x)) == (3, POINTS)
    assert (mean[0], low[0], high[0]) == (1, 0, 2)
    assert (mean[1], low[1], high[1]) == (4, 3, 5)


def test_figures_an_algorithm_does_not_define_are_left_out_with_a_line(run: Run) -> None:
    curves = read_curves(run)
    assert curves is not None
    section = training_section(Curves(curves.frame.with_columns(kl_behavior=None, ess=None)))
    assert "KL to the behavior policy" not in [panel.title for panel in section.panels]
    assert any("kl to the behavior policy, effective sample size" in note for note in section.notes)


def test_best_and_worst_are_of_different_prompts_and_sorted(run: Run) -> None:
    found = read_examples(run)
    assert found is not None and found.iteration == 1
    assert [example.end for example in found.shown] == ["best"] * 3 + ["worst"] * 3
    assert [example.group_id for example in found.shown][:3] == ["train-1-0", "train-1-1<i>", "train-1-2"]
    assert len({example.group_id for example in found.shown}) == 6
    assert [dict(example.facts)["reward"] for example in found.shown] == ["1"] * 3 + ["0"] * 3


def test_without_shaping_the_best_are_found_by_reward_alone(make_run: Callable[..., Run]) -> None:
    found = read_examples(make_run(missing="shape 0"))
    assert found is not None and found.iteration == 0
    assert [dict(example.facts)["advantage"] for example in found.shown] == ["–"] * 6


def test_pieces_add_up_and_keep_the_bytes_of_a_character_together(run: Run) -> None:
    tokenizer = Tokenizer.from_file(str(run.iterations[0].policy.path / "tokenizer.json"))
    said = "a é 🙂"
    found = pieces(tokenizer, list(said.encode()))
    assert [piece for piece, _, _ in found] == ["a", " ", "é", " ", "🙂"]
    assert [(start, end) for _, start, end in found] == [(0, 1), (1, 2), (2, 4), (4, 5), (5, 9)]
    assert pieces(tokenizer, []) == []
    assert "".join(piece for piece, _, _ in pieces(tokenizer, list("🙂".encode())[:2])) == "\ufffd"


def test_tables_of_the_page_are_read_without_tokens(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every collected frame but that of the shown rows is free of token lists."""
    collected: list[pl.DataFrame] = []
    collect = pl.LazyFrame.collect

    def watched(frame: pl.LazyFrame, *args: object, **settings: object) -> pl.DataFrame:
        collected.append(collect(frame, *args, **settings))  # type: ignore[call-overload]
        return collected[-1]

    monkeypatch.setattr(pl.LazyFrame, "collect", watched)
    from pipeline.look.report.page import render

    render(run)
    with_lists = [frame for frame in collected if any(isinstance(dtype, pl.List) for dtype in frame.dtypes)]
    assert [len(frame) for frame in with_lists] == [6]


def test_pictures_follow_the_page_and_share_no_ids() -> None:
    def draw(axes: object) -> None:
        figures.line(axes, np.array([0.0, 1.0]), np.array([1.0, np.nan]), figures.SERIES[0])  # type: ignore[arg-type]

    first, second = (figures.svg(name, draw, x_label="step") for name in ("one", "two"))
    assert "var(--s0)" in first and figures.SERIES[0] not in first
    assert "one-" in first and "one-" not in second
    assert "font-family" not in first and "http" not in first


def test_a_log_scale_is_taken_for_positive_values_that_span_a_factor_of_ten() -> None:
    from matplotlib.figure import Figure

    scales = []
    for values in ([1, 20], [1, 5], [0, 20], [np.nan, np.nan]):
        axes = Figure().subplots()
        figures.log_scale(axes, np.array(values, dtype=float))
        scales.append(axes.get_yscale())
    assert scales == ["log", "linear", "linear", "linear"]
