"""Which prompts an iteration answers, and the seed of each completion: both follow from the run's seed alone."""

from __future__ import annotations

import hashlib
import random


def completion_seed(run_seed: int, purpose: str, iteration: int | None, prompt_id: str, sample_index: int) -> int:
    """A seed per completion, 63 bits of a hash: far apart, and the same whatever else is generated beside it."""
    text = f"{run_seed}\0{purpose}\0{iteration}\0{prompt_id}\0{sample_index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def turn_seed(seed: int, turn: int) -> int:
    """Seed of a turn of the policy: of the first the episode's own, then 63 bits of a hash."""
    if turn == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}\0turn\0{turn}".encode()).digest()[:8], "big") >> 1


def row_seed(run_seed: int, purpose: str, iteration: int | None, prompt_id: str, sample_index: int, rows: int = 1) -> int:
    """Seed of a row.

    Args:
        rows: that a completion may have, one for each turn.
    """
    sample, turn = divmod(sample_index, rows)
    return turn_seed(completion_seed(run_seed, purpose, iteration, prompt_id, sample), turn)


def select_prompts(prompts: int, count: int | None, iteration: int, seed: int) -> list[int]:
    """Rows of the prompts that an iteration answers.

    Drawn without replacement: every prompt is used once before any is used again, and each pass has an order of its own.

    Args:
        prompts: how many there are.
        count: how many the iteration wants; None for all, in order.
    """
    if count is None:
        return list(range(prompts))
    chosen: list[int] = []
    position = iteration * count
    while len(chosen) < count:
        epoch, offset = divmod(position, prompts)
        order = list(range(prompts))
        random.Random(f"prompts-{seed}-{epoch}").shuffle(order)
        part = order[offset : offset + count - len(chosen)]
        chosen += part
        position += len(part)
    return chosen
