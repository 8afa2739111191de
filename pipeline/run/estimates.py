"""How much room on the disk a stage will take: on the low side, so that nothing is refused that would have fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.train import TrainConfig
from pipeline.run.parts import Part
from pipeline.store import Artifact

BYTES_PER_TOKEN = 7
"""Of a stored completion: id, logprob and text, compressed (5 to 9 in the demo's and GSM8K's rollouts)."""
SNAPSHOT_BYTES_PER_TOKEN = 9
"""Of the trainer's memory-mapped files: id (4), behavior logprob (4), mask (1)."""
EXPORTED = 4
"""Bytes of a weight in a checkpoint: fp32, whatever it was trained in."""


def rollouts_bytes(completions: int, max_tokens: int) -> int:
    """Rollouts whose completions are half as long as they may be."""
    return completions * max_tokens * BYTES_PER_TOKEN // 2


def weights_in(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    from safetensors import safe_open

    with safe_open(file, "np") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 (it is no mapping)


def scores_bytes(rollouts: Artifact) -> int:
    """A float32 per token."""
    return 4 * int(rollouts.summary["tokens"])


def training_bytes(parent: Artifact, parts: Sequence[Part], config: TrainConfig) -> int:
    """The checkpoint, the snapshot's files, and resume points: fp32 weights and two moments, twice while one takes the
    other's place; or one of them and the moments that the next training goes on from. Adapters are counted as nothing.
    Checkpoints are fp32, whatever the parent's files are.
    """
    files = (parent.path / file.path for file in parent.files if file.path.endswith(".safetensors") and "/" not in file.path)
    weights = sum(weights_in(file) for file in files)
    tokens = sum(int(part.rollouts.summary["tokens"]) for part in parts)
    completions = sum(int(part.rollouts.summary["completions"]) for part in parts)
    steps = config.epochs * max(completions // config.batch_completions, 1)
    points = 0 if config.lora else min(2, (steps - 1) // config.save_every_steps)
    each = max(12 * points, 12 * min(points, 1) + 8) if config.carries else 12 * points
    return EXPORTED * weights + each * weights + SNAPSHOT_BYTES_PER_TOKEN * tokens
