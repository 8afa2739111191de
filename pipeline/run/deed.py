"""What one firing did to a run, and what the run takes on the disk: read from manifests alone."""

from __future__ import annotations

from dataclasses import replace

from pipeline.common.text import count, duration, interval
from pipeline.config.keep import KeepConfig
from pipeline.run.retention import freed, spare
from pipeline.run.state import Run
from pipeline.run.status import artifacts_of
from pipeline.run.stopping import generated_tokens
from pipeline.store import Artifact
from pipeline.store.removed import is_weights
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
    """How much the run grew, and how much of it `keep` would spare."""
    now, then = _sizes(after), _sizes(before)
    grown, unkept = sum(now.values()) - sum(then.values()), spared(after)
    sparing = f", of which keep: {{last: 1, best: true}} would spare {readable(unkept)}" if unkept else ""
    grew = f"{readable(grown)} more" if grown >= 0 else f"{readable(-grown)} less"
    return f"{grew} on disk ({readable(sum(now.values()))} in all{sparing})"


def spared(run: Run) -> int:
    """Bytes of weights that nothing would need if the newest and the best checkpoint kept theirs; 0 where a rule is set."""
    if not run.config.keep.everything:
        return 0
    lean = run.config.model_copy(update={"keep": KeepConfig(last=1, best=True)})
    weights = {artifact.id: artifact for artifact in spare(replace(run, config=lean))}.values()
    return sum(file.bytes for artifact in weights for file in artifact.files if is_weights(file.path))


def _sizes(run: Run) -> dict[str, int]:
    """Bytes of every artifact that a run names, each once."""
    named = [run.train_prompts, run.heldout_prompts]
    named += [artifact for step in run.iterations for artifact in artifacts_of(step).values()]
    return {artifact.id: _size(artifact) for artifact in named if artifact}


def _size(artifact: Artifact) -> int:
    removal = artifact.removal
    return sum(file.bytes for file in artifact.files) - (freed(artifact, removal) if removal else 0)
