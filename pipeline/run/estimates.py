"""How much room on the disk a stage will take: on the low side, so that nothing is refused that would have fitted."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.train import TrainConfig
from pipeline.run.parts import Part
from pipeline.store import Artifact

BYTES_PER_TOKEN = 7
"""Of a stored completion: id, logprob and text, compressed (5 to 9 in the demo's and GSM8K's rollouts)."""
SNAPSHOT_BYTES_PER_TOKEN = 9
"""Of the trainer's memory-mapped files: id (4), behavior logprob (4), mask (1)."""
WIDTHS = {"float32": 4, "bfloat16": 2}


def rollouts_bytes(completions: int, max_tokens: int) -> int:
    """Rollouts whose completions are half as long as they may be."""
    return completions * max_tokens * BYTES_PER_TOKEN // 2


def scores_bytes(rollouts: Artifact) -> int:
    """A float32 per token."""
    return 4 * int(rollouts.summary["tokens"])


def training_bytes(parent: Artifact, parts: Sequence[Part], config: TrainConfig, dtype: str) -> int:
    """The checkpoint, the snapshot's files, and resume points: fp32 weights and two moments, twice while one takes the
    other's place. Adapters are counted as nothing.
    """
    weights = sum(file.bytes for file in parent.files if file.path.endswith(".safetensors"))
    tokens = sum(int(part.rollouts.summary["tokens"]) for part in parts)
    completions = sum(int(part.rollouts.summary["completions"]) for part in parts)
    steps = config.epochs * max(completions // config.batch_completions, 1)
    points = 0 if config.lora else min(2, (steps - 1) // config.save_every_steps)
    return weights + points * 12 * (weights // WIDTHS[dtype]) + SNAPSHOT_BYTES_PER_TOKEN * tokens
