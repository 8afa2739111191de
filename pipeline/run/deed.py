"""What one firing did to a run, and what the run takes on the disk: read from manifests alone."""

from __future__ import annotations

from pipeline.common.text import count, duration, interval
from pipeline.run.state import Run
from pipeline.run.status import artifacts_of
from pipeline.run.stopping import best_of, generated_tokens
from pipeline.store import Artifact
from pipeline.store.space import readable


def deed_of(before: Run, after: Run, seconds: float) -> str:
    """How far a run is, its pass@1, and what was spent to get there.

    Args:
        before: what there was of the run.
        after: what there is now.
        seconds: in between.
    """
    judged = [step for step in after.iterations if step.evaluation]
    parts = [f"at iteration {after.iterations[-1].iteration}" + (f", paused before {after.missing}" if after.missing else "")]
    if judged and judged[-1].evaluation:
        first = (judged[-1].evaluation.summary.get("pass_at") or {}).get("1") or {}
        share = interval(first.get("value"), first.get("low"), first.get("high"))
        behind = f" of iteration {judged[-1].iteration}" if judged[-1] is not after.iterations[-1] else ""
        parts.append(f"pass@1{behind} {share}")
    parts.append(f"{count(generated_tokens(after) - generated_tokens(before))} tokens")
    parts.append(duration(seconds))
    parts.append(disk_line(before, after))
    return ", ".join(parts)


def disk_line(before: Run, after: Run) -> str:
    """How much the run grew, and how much of it is checkpoints that nothing goes on from."""
    now, then = _sizes(after), _sizes(before)
    grown, older = sum(now.values()) - sum(then.values()), older_checkpoints(after)
    spare = f", {readable(older)} of that older checkpoints" if older else ""
    return f"{readable(grown)} more on disk ({readable(sum(now.values()))} in all{spare})"


def older_checkpoints(run: Run) -> int:
    """Bytes of checkpoints that are neither the base model, nor the newest, nor the best."""
    best, policies = best_of(run), [step.policy for step in run.iterations]
    newest = run.iterations[-1].checkpoint if run.iterations else None
    kept = {artifact.id for artifact in (*policies[:1], *policies[-1:], newest, best.policy if best else None) if artifact}
    return sum({policy.id: _size(policy) for policy in policies if policy.id not in kept}.values())


def _sizes(run: Run) -> dict[str, int]:
    """Bytes of every artifact that a run names, each once."""
    named = [run.train_prompts, run.heldout_prompts]
    named += [artifact for step in run.iterations for artifact in artifacts_of(step).values()]
    return {artifact.id: _size(artifact) for artifact in named if artifact}


def _size(artifact: Artifact) -> int:
    return sum(file.bytes for file in artifact.files)
