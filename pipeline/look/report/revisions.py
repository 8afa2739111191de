"""What an expert made of the policy's own completions, and whether the reference finds it likely."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.common.text import ABSENT, count, number, percent
from pipeline.look.report.sections import Grid, Section
from pipeline.run.state import Iteration, Run
from pipeline.train.likely import PairLikelihood

PAIRS = "reference_logprobs_of_pairs"
"""In the provenance of checkpoints that were trained on pairs."""
COLUMNS = (
    "iteration", "asked", "revised", "mean share changed", "reference answers", "right as they are", "without a revision",
    "reference logprob: preferred", "rejected",
)  # fmt: skip


def revisions_section(run: Run) -> Section | None:
    """A row for each iteration whose completions were corrected; None where none were."""
    steps = [step for step in run.iterations if step.revised is not None or _pairs(step) is not None]
    if not any(step.revised for step in steps):
        return None
    about = (
        "An expert's corrections of the policy's own completions, which are trained on in their place. The share changed is that "
        "of the tokens of both texts that the other has not. The last two columns are what the reference thinks of pairs, the "
        "mean logprob of a token in nats: what it finds unlikely is hardly learned from pairs, however it is preferred."
    )
    return Section(
        "revisions", "Revisions", about, grid=Grid(COLUMNS, [list(_cells(step)) for step in steps]), notes=_notes(steps)
    )


def _cells(step: Iteration) -> Iterator[str]:
    yield str(step.iteration)
    summary = step.revised.summary if step.revised else {}
    yield from (count(summary.get(name)) for name in ("asked", "revised"))
    yield percent(summary.get("change_mean"))
    yield from (count(summary.get(name)) for name in ("references", "unchanged", "without_revision"))
    pairs = _pairs(step) or {}
    yield from (number(pairs[name]) if name in pairs else ABSENT for name in ("chosen", "rejected"))


def _pairs(step: Iteration) -> dict[str, float] | None:
    """Mean reference logprobs of the pairs that an iteration was trained on, if it was trained on pairs."""
    found = step.checkpoint.manifest.provenance.notes.get(PAIRS) if step.checkpoint else None
    return found if isinstance(found, dict) else None


def _notes(steps: list[Iteration]) -> tuple[str, ...]:
    """What trainings warned of."""
    found = []
    for step in steps:
        likely = PairLikelihood(**pairs) if (pairs := _pairs(step)) else None
        if likely is not None and likely.warning:
            found.append(f"Iteration {step.iteration}: {likely.warning}")
    return tuple(found)
