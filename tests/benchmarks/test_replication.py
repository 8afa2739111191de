"""The replication benchmark: its verdicts on results made by hand, and one tiny run of everything."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its modules can be imported, and the working directory is the one they are started from."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks/replication")
    yield
    for name in ("matrix", "run", "judge", "draw"):
        sys.modules.pop(name, None)


def results(runs: dict[str, list[list[float]]], regime: str = "stale", stopped: float = 0.0) -> Any:
    """Results at learning rate 1 of some arms: their scores per seed."""
    from judge import Results

    rows: list[dict[str, Any]] = []
    for arm, seeds in runs.items():
        for seed, scores in enumerate(seeds):
            common = {"regime": regime, "rate": 1.0, "arm": arm, "seed": seed}
            rows += [common | {"step": step, "pass_at_1": score, "entropy": None} for step, score in enumerate(scores)]
            rows += [
                common | {"step": step, "entropy": 0.1, "clip_fraction_positive": share, "clip_fraction_negative": None}
                for step, share in enumerate([0.0, 0.0, 0.0, stopped])
            ]
    return Results(pl.DataFrame(rows, infer_schema_length=None))


CALM = [[0.3, 0.5, 0.6]] * 3


@pytest.mark.parametrize(
    ("reinforce", "verdict"),
    [
        ([[0.3, 0.5, 0.2]] * 3, "holds: 1 of 1 cells"),
        ([[0.3, 0.5, 0.2], *CALM[:2]], "contradicted: 0 of 1 cells"),  # 0.1 in the mean, but in one seed of three
        ([[0.3, 0.5, 0.46]] * 3, "contradicted: 0 of 1 cells"),  # less than 0.05
    ],
)
def test_a_fall_is_from_the_peak_in_the_mean_and_in_most_seeds(
    benchmark: None, reinforce: list[list[float]], verdict: str
) -> None:
    from judge import falling

    rows, said = falling(results({"reinforce": reinforce, "oneside-nois-0.2": CALM, "oneside-is-0.2": CALM}))
    assert said == verdict
    assert rows[1][:2] == ["stale", "1"]


def test_claim_1_needs_the_clipped_ones_to_stay(benchmark: None) -> None:
    from judge import falling

    fallen = [[0.3, 0.5, 0.2]] * 3
    assert falling(results({"reinforce": fallen, "oneside-nois-0.2": CALM, "oneside-is-0.2": fallen}))[1].startswith("contra")
    assert falling(results({"reinforce": fallen}))[1] == "not tested"


def test_importance_weights_are_judged_by_the_larger_spread(benchmark: None) -> None:
    from judge import importance

    near = {"oneside-nois-0.2": [[0.3, 0.6], [0.3, 0.7]], "oneside-is-0.2": [[0.3, 0.69], [0.3, 0.69]]}
    rows, said = importance(results(near))
    assert rows[1] == ["stale", "1", "oneside 0.2", "0.65", "0.69", "+0.04", "0.10", "yes"]
    assert said == "holds: 1 of 1 pairs differ by less than the spread"
    far = near | {"oneside-is-0.2": [[0.3, 0.8], [0.3, 0.8]]}
    assert importance(results(far))[1] == "contradicted: 0 of 1 pairs differ by less than the spread"


@pytest.mark.parametrize(
    ("narrow", "stopped", "verdict"),
    [
        ([0.3, 0.4, 0.6], 0.4, "not tested"),  # it rises, and its clip stops few tokens
        ([0.3, 0.4, 0.6], 0.6, "holds: 1 of 1 cells"),
        ([0.3, 0.4, 0.42], 0.0, "holds: 1 of 1 cells"),
        ([0.3, 0.7, 0.72], 0.0, "contradicted: 0 of 1 cells"),
    ],
)
def test_the_wide_clip_is_judged_where_the_narrow_one_freezes(
    benchmark: None, narrow: list[float], stopped: float, verdict: str
) -> None:
    from judge import width

    arms = {"oneside-nois-0.2": [narrow] * 3, "oneside-nois-wide": CALM}
    assert width(results(arms, stopped=stopped))[1] == verdict


def test_red_weight_may_lack_a_standard_error(benchmark: None) -> None:
    from judge import weighting

    def verdict(final: float) -> str:
        return str(weighting(results({"reinforce": CALM, "red-weight": [[0.3, 0.5, final]] * 3}, regime="fresh"))[1])

    assert verdict(0.58) == "holds: 1 of 1 cells"
    assert verdict(0.56) == "contradicted: 0 of 1 cells"


def test_the_matrix_is_whole(benchmark: None) -> None:
    from matrix import ARMS, RATES, REGIMES, SEEDS, jobs

    from pipeline.algorithms import resolve

    labels = [arm.label for arm in ARMS]
    assert len(set(labels)) == len(labels) == 17
    for arm in ARMS:
        resolve(arm.algorithm, arm.settings)
    every = jobs(list(REGIMES), labels, list(RATES), list(SEEDS))
    assert len({job.name for job in every}) == len(every) == 2 * 3 * (17 + 17 + 7)
    assert {regime.name: regime.steps for regime in REGIMES.values()} == {"stale": 60, "frozen": 40, "fresh": 40}


@pytest.mark.long
def test_a_tiny_matrix_is_run_once_judged_and_drawn(benchmark: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import draw
    import run
    from judge import Results, finals
    from matrix import ARMS, Job, Regime

    regimes = Regime(name="stale", rounds=2, prompts=6), Regime(name="frozen", rounds=1, prompts=3, epochs=(1, 2))
    wanted = [Job(regime, arm, 1e-4, 0) for regime in regimes for arm in ARMS[:2]]
    assert run.do_all(wanted, tmp_path, 4, 1) == 0
    run.collect(wanted, tmp_path, tmp_path / "results.parquet")
    frame = pl.read_parquet(tmp_path / "results.parquet")
    steps = frame.drop_nulls("entropy").group_by("regime", "arm").len().sort("regime", "arm")["len"].to_list()
    assert steps == [2, 2, 4, 4]
    assert frame.drop_nulls("pass_at_1").group_by("regime", "arm").len()["len"].to_list() == [3] * 4
    first = frame.drop_nulls("kl_behavior").filter(pl.col("step") == 2, pl.col("regime") == "stale")
    assert first["kl_behavior"].max() < 1e-6  # type: ignore[operator]  # a new round: the data are the policy's own again
    assert len(finals(Results(frame))) == 1 + len(ARMS)
    monkeypatch.setattr(sys, "argv", ["draw.py", "--results", str(tmp_path / "results.parquet"), "--out", str(tmp_path)])
    draw.main()
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        f"replication-{name}.svg" for name in ("claims", "others", "entropy", "finals")
    }
    monkeypatch.setattr(run, "do", None)  # everything has its record
    assert run.do_all(wanted, tmp_path, 4, 1) == 0
