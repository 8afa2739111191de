"""Draw the results of run.py as SVG files for docs/replication.md.

python benchmarks/replication/draw.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import polars as pl
from judge import RESULTS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matrix import ARMS, REGIMES

COLORS = {"reinforce": "#b3261e", "oneside-nois-0.2": "#2166ac", "oneside-nois-wide": "#1b7f5c", "red-weight": "#7b4ab0"}
"""The arms that the claims speak of."""
OTHERS = {"grpo": "#c4560a", "opmd": "#2166ac", "asymre": "#1b7f5c", "red-drop": "#6b6f10", "topr": "#a3386c"}
SETTINGS: Any = {
    "svg.hashsalt": "rollbook",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
}


def grid(frame: pl.DataFrame, title: str) -> tuple[Figure, dict[tuple[str, float], Axes]]:
    """A row per learning rate and a column per regime."""
    rates, regimes = sorted(frame["rate"].unique()), [name for name in REGIMES if name in frame["regime"].unique()]
    figure, axes = plt.subplots(len(rates), len(regimes), figsize=(3.3 * len(regimes), 2.5 * len(rates)), squeeze=False)
    figure.suptitle(title)
    by_cell = {(regime, rate): axes[i][j] for i, rate in enumerate(rates) for j, regime in enumerate(regimes)}
    for (regime, rate), ax in by_cell.items():
        ax.set_title(f"{regime}, learning rate {rate:g}", fontsize=9)
        ax.set_xlabel("optimizer step")
    return figure, by_cell


def curves(frame: pl.DataFrame, column: str, title: str, colors: dict[str, str]) -> Figure:
    """Mean over seeds, with a band from the least to the largest. Seeds of RED-Drop differ in steps: n-th goes with n-th."""
    figure, by_cell = grid(frame, title)
    place = pl.int_range(pl.len()).over("regime", "rate", "arm", "seed")
    known = frame.drop_nulls(column).sort("step").with_columns(place=place)
    for (regime, rate), ax in by_cell.items():
        if column == "pass_at_1":
            ax.set_ylim(0, 1)
        for arm, color in colors.items():
            rows = known.filter(pl.col("regime") == regime, pl.col("rate") == rate, pl.col("arm") == arm)
            value = pl.col(column)
            over_seeds = {"step": pl.col("step").mean(), "mean": value.mean(), "least": value.min(), "most": value.max()}
            lines = rows.group_by("place").agg(**over_seeds).sort("place")
            if lines.is_empty():
                continue
            ax.plot(lines["step"], lines["mean"], color=color, label=arm, marker="." if len(lines) < 10 else "")
            ax.fill_between(lines["step"], lines["least"], lines["most"], color=color, alpha=0.15, linewidth=0)
    handles, labels = next(iter(by_cell.values())).get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    return figure


def finals(frame: pl.DataFrame) -> Figure:
    """Final score of every arm, a dot per seed and a line at the mean."""
    known = frame.drop_nulls("pass_at_1").sort("step")
    last = known.group_by("regime", "rate", "arm", "seed", maintain_order=True).last()
    figure, by_cell = grid(frame, "Final held-out pass@1")
    labels = [arm.label for arm in ARMS][::-1]
    figure.set_size_inches(3.3 * len({regime for regime, _ in by_cell}), 3.3 * len({rate for _, rate in by_cell}))
    for number, ((regime, rate), ax) in enumerate(by_cell.items()):
        start = known.filter(pl.col("regime") == regime, pl.col("step") == 0)["pass_at_1"].mean()
        ax.axvline(float(str(start)), color="#5f6b77", linewidth=1, linestyle=":")
        for place, label in enumerate(labels):
            rows = last.filter(pl.col("regime") == regime, pl.col("rate") == rate, pl.col("arm") == label)["pass_at_1"]
            values: Any = rows.to_list()
            ax.plot(values, [place] * len(rows), "o", color=COLORS.get(label, "#5f6b77"), markersize=4, alpha=0.7)
            if len(rows):
                ax.plot([rows.mean()], [place], "|", color=COLORS.get(label, "#5f6b77"), markersize=11)
        ax.set_yticks(range(len(labels)), labels if number % len({r for r, _ in by_cell}) == 0 else [""] * len(labels))
        ax.set_xlim(-0.02, 1.02)
        ax.set_xlabel("pass@1")
    figure.tight_layout()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    frame = pl.read_parquet(args.results)
    with plt.rc_context(SETTINGS):
        drawn = {
            "claims": curves(frame, "pass_at_1", "Held-out pass@1: the arms that the claims speak of", COLORS),
            "others": curves(frame, "pass_at_1", "Held-out pass@1: the other methods", OTHERS),
            "entropy": curves(frame, "entropy", "Entropy of the policy on its training tokens, nats", COLORS),
            "finals": finals(frame),
        }
        for name, figure in drawn.items():
            figure.savefig(args.out / f"replication-{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
