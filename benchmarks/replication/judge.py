"""Apply criteria.md to the results of run.py, and print the figures and verdicts as Markdown.

python benchmarks/replication/judge.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from matrix import ARMS, REGIMES

RESULTS = Path("benchmarks/results/replication.parquet")
FALL = 0.05
"""Peak less final score, above which an arm falls."""
FROZEN_SHARE = 0.5
"""Share of tokens of one sign that are stopped, above which a clip freezes."""
STANDARD_ERROR = 0.03
"""Of a score."""
SHARE_OF_PAIRS = 0.9
"""Pairs of IS and NoIS that must agree."""

Cell = tuple[str, float]
"""Regime and learning rate."""


@dataclass(frozen=True)
class Run:
    """One run's scores, in order of steps."""

    seed: int
    scores: list[float]
    stopped: tuple[float, float]
    """Mean clip fraction over the last quarter of the steps: tokens with A > 0, with A < 0."""

    @property
    def final(self) -> float:
        return self.scores[-1]

    @property
    def fall(self) -> float:
        return max(self.scores) - self.final

    @property
    def area(self) -> float:
        return _mean(self.scores[1:])


class Results:
    """All runs, by regime, learning rate and arm."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._runs: dict[tuple[str, float, str], list[Run]] = {}
        for (regime, rate, arm, seed), rows in frame.sort("step").group_by("regime", "rate", "arm", "seed", maintain_order=True):
            self._runs.setdefault((str(regime), float(str(rate)), str(arm)), []).append(_run(int(str(seed)), rows))
        for runs in self._runs.values():
            runs.sort(key=lambda run: run.seed)

    def runs(self, cell: Cell, arm: str) -> list[Run]:
        return self._runs.get((*cell, arm), [])

    def cells(self, *regimes: str) -> Iterator[Cell]:
        """Cells of these regimes with any run."""
        there = {key[:2] for key in self._runs}
        return ((regime, rate) for regime in regimes for rate in sorted({rate for _, rate in there}) if (regime, rate) in there)

    def mean(self, cell: Cell, arm: str, figure: Callable[[Run], float]) -> float:
        return _mean([figure(run) for run in self.runs(cell, arm)])

    def spread(self, cell: Cell, arm: str) -> float:
        finals = [run.final for run in self.runs(cell, arm)]
        return max(finals) - min(finals)

    def has(self, cell: Cell, *arms: str) -> bool:
        return all(self.runs(cell, arm) for arm in arms)


def _run(seed: int, rows: pl.DataFrame) -> Run:
    steps = rows.drop_nulls("entropy")
    last = steps.tail(max(1, len(steps) // 4))
    shares: list[Any] = [last[f"clip_fraction_{sign}"].mean() for sign in ("positive", "negative")]
    return Run(seed, rows["pass_at_1"].drop_nulls().to_list(), (float(shares[0] or 0.0), float(shares[1] or 0.0)))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def falls(results: Results, cell: Cell, arm: str) -> bool:
    """In the mean and in more than half of the seeds."""
    runs = results.runs(cell, arm)
    return results.mean(cell, arm, lambda run: run.fall) > FALL and sum(run.fall > FALL for run in runs) > len(runs) / 2


def freezes(results: Results, cell: Cell, arm: str) -> bool:
    """Whether the clip stops most tokens of one sign, or the score hardly rises once training began."""
    rise = results.mean(cell, arm, lambda run: run.final - run.scores[1])
    return max(results.mean(cell, arm, lambda run, i=sign: run.stopped[i]) for sign in (0, 1)) > FROZEN_SHARE or rise < FALL  # type: ignore[misc]


def falling(results: Results) -> tuple[list[list[str]], str]:
    """Criterion 1."""
    rows, verdicts = [], []
    watched = ("reinforce", "oneside-nois-0.2", "oneside-is-0.2")
    for cell in results.cells("stale", "frozen"):
        if not results.has(cell, *watched):
            continue
        fell = [falls(results, cell, arm) for arm in watched]
        verdicts.append(fell == [True, False, False])
        figures = [_fall(results, cell, arm) + (" **falls**" if f else "") for arm, f in zip(watched, fell, strict=True)]
        rows.append([*_named(cell), *figures, "holds" if verdicts[-1] else "contradicted"])
    return [["regime", "rate", *watched, "claim 1"], *rows], _verdict(verdicts)


def _fall(results: Results, cell: Cell, arm: str) -> str:
    peak, final = results.mean(cell, arm, lambda run: max(run.scores)), results.mean(cell, arm, lambda run: run.final)
    return f"{peak:.2f} → {final:.2f}"


def importance(results: Results) -> tuple[list[list[str]], str]:
    """Criterion 2."""
    rows, verdicts = [], []
    for cell in results.cells("stale", "frozen"):
        for arm in ARMS:
            twin = arm.label.replace("-nois-", "-is-")
            if twin == arm.label or not results.has(cell, arm.label, twin):
                continue
            without, with_ = (results.mean(cell, name, lambda run: run.final) for name in (arm.label, twin))
            spread = max(results.spread(cell, arm.label), results.spread(cell, twin))
            verdicts.append(abs(without - with_) < spread)
            figures = [f"{without:.2f}", f"{with_:.2f}", f"{with_ - without:+.2f}", f"{spread:.2f}"]
            rows.append([*_named(cell), arm.label.replace("-nois-", " "), *figures, "yes" if verdicts[-1] else "**no**"])
    share = sum(verdicts) / max(len(verdicts), 1)
    verdict = "not tested" if not verdicts else "holds" if share >= SHARE_OF_PAIRS else "contradicted"
    header = ["regime", "rate", "clip", "NoIS", "IS", "difference", "spread", "within"]
    return [header, *rows], f"{verdict}: {sum(verdicts)} of {len(verdicts)} pairs differ by less than the spread"


def width(results: Results) -> tuple[list[list[str]], str]:
    """Criterion 3."""
    rows, verdicts = [], []
    narrow, wide = "oneside-nois-0.2", "oneside-nois-wide"
    for cell in results.cells("stale", "frozen"):
        if not results.has(cell, narrow, wide):
            continue
        areas = [results.mean(cell, arm, lambda run: run.area) for arm in (narrow, wide)]
        shares = [results.mean(cell, narrow, lambda run, i=sign: run.stopped[i]) for sign in (0, 1)]  # type: ignore[misc]
        frozen = freezes(results, cell, narrow)
        if frozen:
            verdicts.append(areas[1] > areas[0])
        said = ("holds" if verdicts[-1] else "contradicted") if frozen else "not frozen"
        figures = [f"{share:.0%}" for share in shares] + [f"{area:.2f}" for area in areas]
        rows.append([*_named(cell), *figures, "yes" if frozen else "no", said])
    header = ["regime", "rate", "stopped, A > 0", "stopped, A < 0", "area 0.2", "area wide", "0.2 freezes", "claim 3"]
    return [header, *rows], _verdict(verdicts)


def weighting(results: Results) -> tuple[list[list[str]], str]:
    """Criterion 4."""
    rows, verdicts = [], []
    for cell in results.cells(*REGIMES):
        if not results.has(cell, "reinforce", "red-weight"):
            continue
        plain, weighted = (results.mean(cell, arm, lambda run: run.final) for arm in ("reinforce", "red-weight"))
        verdicts.append(weighted >= plain - STANDARD_ERROR)
        said = "holds" if verdicts[-1] else "contradicted"
        rows.append([*_named(cell), f"{plain:.2f}", f"{weighted:.2f}", f"{weighted - plain:+.2f}", said])
    return [["regime", "rate", "reinforce", "red-weight", "difference", "claim 4"], *rows], _verdict(verdicts)


def finals(results: Results) -> list[list[str]]:
    """Mean final score of every arm in every cell, with the least and the largest over seeds."""
    cells = list(results.cells(*REGIMES))
    rows = [["arm", *(" ".join(_named(cell)) for cell in cells)]]
    for arm in ARMS:
        shown = []
        for cell in cells:
            values = [run.final for run in results.runs(cell, arm.label)]
            shown.append(f"{_mean(values):.2f} ({min(values):.2f}–{max(values):.2f})" if values else "–")
        rows.append([arm.label, *shown])
    return rows


def _named(cell: Cell) -> tuple[str, str]:
    return cell[0], f"{cell[1]:g}"


def _verdict(verdicts: list[bool]) -> str:
    if not verdicts:
        return "not tested"
    name = "holds" if all(verdicts) else "contradicted" if not any(verdicts) else "holds in part"
    return f"{name}: {sum(verdicts)} of {len(verdicts)} cells"


def markdown(rows: list[list[str]]) -> str:
    header, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body))


CLAIMS = {
    "1. REINFORCE falls when data are stale, REC-OneSide does not": falling,
    "2. IS and NoIS differ by less than the spread of seeds": importance,
    "3. The wide clip learns faster where the narrow one freezes": width,
    "4. RED-Weight is at least as good as REINFORCE": weighting,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    results = Results(pl.read_parquet(parser.parse_args().results))
    for title, judge in CLAIMS.items():
        rows, verdict = judge(results)
        print(f"### {title}\n\n**{verdict}.**\n\n{markdown(rows)}\n")
    print(f"### Final scores\n\n{markdown(finals(results))}")


if __name__ == "__main__":
    main()
