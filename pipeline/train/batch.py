"""A micro-batch as tensors: padded rows with a block mask for the model, flat completion tokens for the loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.algorithms.tokens import Tokens
from pipeline.train.plan import Row
from pipeline.train.snapshot import Completion


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows for the model, and the completion tokens in them."""

    input_ids: Int[Tensor, "rows length"]
    position_ids: Int[Tensor, "rows length"]
    attends: Bool[Tensor, "rows 1 length length"]
    """attends[r, 0, q, k]: position q of row r sees position k."""
    predicted_from: Int[Tensor, " tokens"]
    """Where in the flattened rows the hidden state that predicts each completion token lies."""
    targets: Int[Tensor, " tokens"]
    temperature: Float[Tensor, " tokens"]
    behavior: Float[Tensor, " tokens"]
    mask: Bool[Tensor, " tokens"]
    sequence: Int[Tensor, " tokens"]
    advantage: Float[Tensor, " sequences"]
    weight: Float[Tensor, " sequences"]
    lengths: Float[Tensor, " sequences"]
    completions: list[Completion]

    def tokens(self, logprobs: Float[Tensor, " tokens"], entropy: Float[Tensor, " tokens"], has_behavior: bool) -> Tokens:
        return Tokens(
            logprobs=logprobs,
            entropy=entropy,
            behavior=self.behavior if has_behavior else None,
            mask=self.mask,
            sequence=self.sequence,
            advantage=self.advantage,
            weight=self.weight,
            lengths=self.lengths,
        )


def collate(rows: list[Row], device: torch.device) -> Batch:
    """Lay rows out side by side, padded on the right.

    A completion's positions go on from the end of its prompt. A padding position sees itself only, so that no attention
    row is empty; nothing reads it.
    """
    length = max(row.length for row in rows)
    ids = np.zeros((len(rows), length), np.int64)
    positions = np.zeros((len(rows), length), np.int64)
    part = np.full((len(rows), length), -1, np.int64)
    predicted_from, sequence = [], []
    completions: list[Completion] = []
    for number, row in enumerate(rows):
        prompt = len(row.group.prompt)
        ids[number, :prompt] = row.group.prompt
        positions[number, :prompt] = np.arange(prompt)
        part[number, :prompt] = 0
        start = prompt
        for index, completion in enumerate(row.completions, start=1):
            size = len(completion.tokens)
            here = slice(start, start + size)
            ids[number, here] = completion.tokens
            positions[number, here] = prompt + np.arange(size)
            part[number, here] = index
            source = np.arange(start - 1, start + size - 1)
            source[0] = prompt - 1
            predicted_from.append(number * length + source)
            sequence.append(np.full(size, len(completions), np.int64))
            completions.append(completion)
            start += size
    temperature = [np.full(len(c.tokens), c.temperature or 1.0, np.float32) for c in completions]
    masks = [c.mask for c in completions]
    tensors = {
        "input_ids": ids,
        "position_ids": positions,
        "predicted_from": np.concatenate(predicted_from),
        "targets": np.concatenate([c.tokens for c in completions]).astype(np.int64),
        "temperature": np.concatenate(temperature),
        "behavior": np.concatenate([c.behavior for c in completions]),
        "mask": np.concatenate(masks),
        "sequence": np.concatenate(sequence),
        "advantage": np.array([c.advantage for c in completions], np.float32),
        "weight": np.array([c.weight for c in completions], np.float32),
        "lengths": np.array([mask.sum() for mask in masks], np.float32),
    }
    on_device = {name: torch.from_numpy(array).to(device) for name, array in tensors.items()}
    return Batch(attends=_attends(torch.from_numpy(part).to(device)), completions=completions, **on_device)


def _attends(part: Int[Tensor, "rows length"]) -> Bool[Tensor, "rows 1 length length"]:
    """Who sees whom: causal, within one's own part or in the prompt (part 0); padding (part -1) sees itself."""
    length = part.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=part.device).tril()
    query, key = part[:, :, None], part[:, None, :]
    sees = ((query == key) | (key == 0)) & (query >= 0) & causal
    return (sees | torch.eye(length, dtype=torch.bool, device=part.device)).unsqueeze(1)
