"""The report: one HTML page that holds everything it shows. It asks nothing of the network; its only script tells a plot's
values where it is pointed at, and is named by its hash in the page's policy, so that no other runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.text import ABSENT, count, duration, interval, percent
from pipeline.look.pieces import SHADES
from pipeline.look.report import outcomes
from pipeline.look.report.course import by_iteration, each
from pipeline.look.report.curves import read_curves, training_section
from pipeline.look.report.examples import read_examples
from pipeline.look.report.frame import Tile, page_environment, script
from pipeline.look.report.learned import learned_section
from pipeline.look.report.made import made
from pipeline.look.report.previous import changed_settings
from pipeline.look.report.revisions import revisions_section
from pipeline.look.report.verdict import Outcome, verdict
from pipeline.run.state import Run
from pipeline.run.status import artifacts_of, status
from pipeline.store import Artifact
from pipeline.store.files import write_text

SHORT = 12
"""Digits of an id that the page shows."""


@dataclass(frozen=True)
class Ancestor:
    """One row of the lineage."""

    kind: str
    used_as: str
    id: str
    path: str
    parents: tuple[tuple[str, str, bool], ...]
    """Role, id, and whether that artifact is on the page too."""


def write_report(run: Run, path: str | Path) -> Path:
    """Write the page; an earlier one at that place is replaced whole.

    Parts whose data are not there yet are one line saying so. Rollouts are read column by column; only the few that are
    shown are read with their tokens.

    Raises:
        IntegrityError: a table of the run is missing or of another size than its manifest says.
        StageFailed: the place cannot be written to.
    """
    path = Path(path)
    write_text(path, render(run))
    return path


def render(run: Run) -> str:
    """The page's HTML."""
    now = status(run)
    rows = now["iterations"]
    learned, said, revisions = learned_section(run), verdict(run), revisions_section(run)
    if learned and learned[1].way == "down":
        said = Outcome(f"{said.says} {learned[1].says}", "down")
    sections = [
        outcomes.accuracy_section(rows),
        *([learned[0]] if learned else []),
        outcomes.rollouts_section(run),
        *([revisions] if revisions else []),
        training_section(read_curves(run), outcomes.logprob_panel(run)),
        outcomes.time_section(run, rows),
    ]
    template = page_environment().get_template("page.html.j2")
    return template.render(
        now=now,
        verdict=said,
        made=made(artifact.manifest.provenance for _, artifact in _artifacts(run)),
        scripts=[script("readings.js")],
        tiles=_headline(run, rows),
        sections=sections,
        examples=read_examples(run),
        shades=SHADES,
        changed=changed_settings(run),
        course=by_iteration(run.config),
        chosen=as_yaml(run.config.model_dump(mode="json", exclude_defaults=True)),
        settings=as_yaml(run.config.model_dump(mode="json")),
        lineage=lineage(_artifacts(run)),
        short=SHORT,
    )


def as_yaml(settings: dict[str, Any]) -> str:
    """Settings as a config would have them."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)


def _headline(run: Run, rows: list[dict[str, Any]]) -> list[Tile]:
    config = run.config
    evaluated = [row for row in rows if row["pass_at_1"] is not None]
    trained = sum(step.checkpoint is not None for step in run.iterations)
    rollouts = [step.answers.rollouts for step in run.iterations if step.answers and step.answers.rollouts]
    answers = [part for step in run.iterations if step.answers for part in (step.answers.sampled, step.answers.greedy) if part]
    seconds = [value for row in rows for value in row["seconds"].values() if value is not None]
    return [
        _change("pass@1", evaluated, "pass_at_1"),
        _change("greedy accuracy", [row for row in rows if row["greedy_accuracy"] is not None], "greedy_accuracy"),
        Tile("iterations", f"{trained} of {config.iterations}", f"{', '.join(each(config, 'epochs'))} epochs each"),
        Tile("algorithm", ", ".join(each(config, "algorithm"))),
        Tile("model", config.model.path, f"seed {config.seed}"),
        Tile("wall time", duration(sum(seconds)) if seconds else ABSENT, "of all stages, added up"),
        _kept("training rollouts kept", rollouts),
        _kept("held-out answers kept", answers),
    ]


def _change(label: str, rows: list[dict[str, Any]], name: str) -> Tile:
    """Base and last value of a share, with the gain in points and the last one's interval."""
    if not rows:
        return Tile(label, ABSENT, "not evaluated yet")
    base, last = rows[0], rows[-1]
    if base is last:
        which = "base model" if base["iteration"] == 0 else f"iteration {base['iteration']}"
        return Tile(label, interval(base[name], base[f"{name}_low"], base[f"{name}_high"]), f"{which} only, so far")
    gain = 100 * (last[name] - base[name])
    low, high = last[f"{name}_low"], last[f"{name}_high"]
    span = f"; last in [{100 * low:.1f}, {100 * high:.1f}]" if low is not None and high is not None else ""
    return Tile(label, f"{percent(base[name])} → {percent(last[name])}", f"{gain:+.1f} points{span}")


def _kept(label: str, artifacts: list[Artifact]) -> Tile:
    """Completions and tokens of distinct rollouts artifacts."""
    distinct = {artifact.id: artifact.summary for artifact in artifacts}
    completions, tokens = (
        [summary[name] for summary in distinct.values() if summary.get(name) is not None] for name in ("completions", "tokens")
    )
    return Tile(label, count(sum(completions)), f"{count(sum(tokens))} tokens") if completions else Tile(label, ABSENT)


def _artifacts(run: Run) -> Iterator[tuple[str, Artifact]]:
    """Every artifact of the run with what it was used as, in the order of the run; some come twice."""
    yield from run.prompts.items()
    for step in run.iterations:
        for name, artifact in artifacts_of(step).items():
            if artifact is not None:
                yield f"{name} of {step.iteration}", artifact


def lineage(used: Iterable[tuple[str, Artifact]]) -> list[Ancestor]:
    """Rows of the lineage, one per artifact.

    Args:
        used: what artifacts were used as; one may come several times.
    """
    uses: dict[str, list[str]] = {}
    artifacts: dict[str, Artifact] = {}
    for use, artifact in used:
        uses.setdefault(artifact.id, []).append(use)
        artifacts[artifact.id] = artifact
    return [
        Ancestor(
            kind=artifact.kind,
            used_as=", ".join(uses[id]),
            id=id,
            path=artifact.url,
            parents=tuple((parent.role, parent.id, parent.id in artifacts) for parent in artifact.manifest.content.parents),
        )
        for id, artifact in artifacts.items()
    ]
