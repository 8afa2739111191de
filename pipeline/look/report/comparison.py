"""The comparison's page: one HTML file that holds everything it shows.

Its only scripts sort tables and tell the values of plots, and are named by their hashes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.common.text import ABSENT, count, duration, interval, number, percent
from pipeline.look.report.beside import not_comparable
from pipeline.look.report.colors import role_of
from pipeline.look.report.comparison_cells import line_key
from pipeline.look.report.comparison_curves import cards, epochs_section, look_of, training_section
from pipeline.look.report.comparison_data import Compared, read_compared
from pipeline.look.report.comparison_grids import BARS, cost_grid, last_epoch_grid, ranking_grid, trials_grid
from pipeline.look.report.comparison_table import cautions, ends, failures
from pipeline.look.report.comparison_verdict import ranking_verdict
from pipeline.look.report.frame import Tile, page_environment, script
from pipeline.look.report.made import made
from pipeline.look.report.page import SHORT, as_yaml, lineage
from pipeline.look.report.sections import Grid
from pipeline.store import Artifact, Store
from pipeline.store.files import write_text

CELLS = (
    *("reward", "filters", "advantage", "weighting", "importance", "trust_region", "mismatch", "regularizers", "aggregation"),
)
"""Order of an algorithm's parts; others follow."""


SYMBOLS = {
    "π": "pi, the policy that is trained",
    "μ": "mu, the behavior policy, which drew the rollouts",
    "ref, prox": "the base model, and the policy that training starts from",
    "y, y_t": "a completion, and its token t",
    "r": "the reward of a completion",
    "r_t": "the importance ratio π/μ of a token",
    "W, s": "the ratio of a whole completion, and that to the power 1/length",
    "A": "the advantage: how much better a completion is than what it is compared with",
    "clip(r_t)": "r_t, kept between 1 − low and 1 + high",
    "sg[…]": "taken as a constant of the gradient",
    "1[…]": "1 where the condition holds, else 0",
    "KL": "Kullback–Leibler divergence: how far a policy has moved, in nats per token",
    "ESS": "effective sample size: (Σ W)² / (n Σ W²), 1 where all completions count alike",
}
"""What the formulas and headings of the page are written in."""


@dataclass(frozen=True)
class Entry:
    """An algorithm in the legend."""

    number: int
    label: str
    key: Markup
    formula: str
    paper: str


def write_comparison(comparison: Artifact, store: Store, path: str | Path) -> Path:
    """Write the page; an earlier one at that place is replaced whole.

    Raises:
        StageFailed: the place cannot be written to.
    """
    path = Path(path)
    write_text(path, render(read_compared(comparison, store)))
    return path


def render(compared: Compared) -> str:
    """The page's HTML."""
    environment = page_environment()
    here = Path(__file__).parent
    recipe, notes = compared.artifact.recipe, compared.artifact.manifest.provenance.notes
    shared = {name: recipe[name] for name in ("train", "shape", "evaluate")}
    return environment.get_template("comparison.html.j2").render(
        name=notes.get("run", "comparison"),
        iteration=recipe["iteration"],
        more_style=Markup((here / "comparison.css").read_text(encoding="utf-8")),
        scripts=[script("comparison.js"), script("readings.js")],
        verdict=ranking_verdict(compared),
        made=made([compared.artifact.manifest.provenance]),
        tiles=_headline(compared),
        entries=_entries(compared),
        ranking=ranking_grid(compared),
        last_epoch=last_epoch_grid(compared),
        epochs=epochs_section(compared),
        training=training_section(compared),
        cards=cards(compared),
        cost=cost_grid(compared),
        disturbed=not_comparable({label: compared.other_work(label) for label in compared.ranked}),
        bars=[(part, role_of(color)) for part, color in BARS.items()],
        trials=trials_grid(compared),
        failures=failures(compared.artifact),
        cautions=cautions(compared.artifact, compared.parent("heldout")),
        differences=_differences(compared),
        changed=[f"{key}: {was} → {now}" for key, (was, now) in notes.get("changed", {}).items()],
        settings=as_yaml(shared),
        symbols=SYMBOLS,
        lineage=lineage(_used(compared)),
        short=SHORT,
    )


def _headline(compared: Compared) -> list[Tile]:
    before, recipe, summary = compared.before, compared.artifact.recipe, compared.artifact.summary
    best, epochs = compared.ranking[0], recipe["train"]["epochs"]
    rollouts = compared.parent("rollouts")
    facts = rollouts.summary if rollouts else {}
    several = len(compared.seeds) > 1
    seconds = compared.trials.select("train_seconds", "generate_seconds").sum().sum_horizontal().item()
    return [
        Tile("best pass@1", percent(best["pass_at_1"]), best["label"] if best["pass_at_1"] is not None else "nothing was judged"),
        Tile("before training", interval(*ends(before, "pass_at_1")), "pass@1 of the policy that drew the rollouts"),
        Tile("snapshot", f"{count(facts.get('completions'))} rollouts", f"mean reward {number(facts.get('reward_mean'))}"),
        Tile("algorithms", str(len(compared.labels)), f"trained for {epochs} epoch{'s' if epochs > 1 else ''} each"),
        Tile(
            "seeds",
            str(len(compared.seeds)),
            f"{', '.join(map(str, compared.seeds))}" if several else f"seed {compared.seeds[0]}",
        ),
        Tile("trials", count(summary["trials"]), f"{summary['failed']} failed" if summary["failed"] else "none failed"),
        Tile("wall time", duration(seconds) if seconds else ABSENT, "of training and held-out answers, added up"),
    ]


def _entries(compared: Compared) -> list[Entry]:
    """In the order of the ranking."""
    entries = []
    algorithms = {algorithm["label"]: algorithm for algorithm in compared.artifact.recipe["algorithms"]}
    for label in compared.ranked:
        number_, algorithm = compared.labels.index(label), algorithms[label]
        look = look_of(number_)
        dashes = " ".join(f"{2.5 * length:g}" for length in look.dashes)
        formula, paper = algorithm.get("formula", ""), algorithm.get("paper", "")
        entries.append(Entry(number_, algorithm["label"], line_key(look.role, dashes), formula, paper))
    return entries


def _differences(compared: Compared) -> Grid:
    """The parts in which the algorithms differ."""
    algorithms = compared.artifact.recipe["algorithms"]
    texts = [{slot: _cell_text(cell) for slot, cell in algorithm["cells"].items()} for algorithm in algorithms]
    names = list(dict.fromkeys([*CELLS, *(slot for row in texts for slot in row)]))
    differing = [name for name in names if len({row.get(name, ABSENT) for row in texts}) > 1]
    rows = [
        [algorithm["label"], *(row.get(name, ABSENT) for name in differing)]
        for algorithm, row in zip(algorithms, texts, strict=True)
    ]
    return Grid(("algorithm", *(name.replace("_", " ") for name in differing)), rows)


def _cell_text(cell: Any) -> str:
    """A cell of a recipe as it would be written.

    >>> _cell_text({"cell": "OneSide", "low": 0.2, "high": 0.2})
    'OneSide(low=0.2, high=0.2)'
    """
    if isinstance(cell, list):
        return " + ".join(_cell_text(part) for part in cell) or ABSENT
    if not isinstance(cell, dict) or "cell" not in cell:
        return str(cell)
    settings = ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in cell.items() if key != "cell"
    )
    return f"{cell['cell']}({settings})" if settings else str(cell["cell"])


def _used(compared: Compared) -> Iterator[tuple[str, Artifact]]:
    """The comparison, its parents, and what the trials' checkpoints were shaped by."""
    for parent in compared.artifact.manifest.content.parents:
        if (found := compared.artifacts.get(parent.id)) is not None:
            yield parent.role, found
    for row in compared.trials.filter(status="ok").to_dicts():
        if (found := compared.artifacts.get(row["shaped_id"])) is not None:
            yield f"shaped for {row['label']}", found
    yield "this comparison", compared.artifact
