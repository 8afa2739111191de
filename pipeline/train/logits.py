"""Models whose logits are more than a linear map of the last hidden state: scaled, capped, or both.

    logits = cap tanh(s l / cap),   l = h W^T + bias;   without a cap, logits = s l

A scale is a temperature: logits / T = l / (T / s). It costs nothing. A cap is differentiated by autograd, chunk by chunk. What
s and cap are is measured on the model itself, since families name them differently, and one multiplies where another divides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.train.following import Following
from pipeline.train.head import tokens_of_chunk
from pipeline.train.logprobs import HandOver, RowsOfChunk

HINT = re.compile("logit|lm_head|output_mult")
"""Names of settings that may have to do with it. Models without one that is set are linear."""
CLOSE = 1e-4
"""Relative: a measured scale that is so near to a setting, or to one over it, is that."""
PROBE = 8
"""Tokens of the measurement."""
MEASURED = 4.0
"""Largest logit of the measurement: a cap shows, and one of 1 can still be undone in fp32."""


@dataclass(frozen=True)
class LogitMap:
    """How a model's logits follow from those of its output projection."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, linear: Tensor, temperature: Tensor) -> Tensor:
        """Logits / temperature.

        Args:
            temperature: divided by the scale already.
        """
        scaled = linear / temperature[:, None]
        if self.cap is None:
            return scaled
        cap = self.cap / (temperature * self.scale)[:, None]
        return cap * torch.tanh(scaled / cap)


def may_be_mapped(model: Any) -> bool:
    """Whether a model's settings hint at logits that are no linear map, so that they are measured."""
    return bool(_hints(model)) and model.get_output_embeddings() is not None


def _hints(model: Any) -> set[float]:
    settings = model.config.get_text_config().to_dict()
    numbers = {name: float(value) for name, value in settings.items() if isinstance(value, int | float) and value}
    return {value for name, value in numbers.items() if HINT.search(name)} - {1.0}


@torch.no_grad()
def logit_map(model: Any) -> LogitMap:
    """Measure it on a few tokens, if the model's settings hint at one. What is found wrong here, the self-check refuses.

    The logits that are measured are not the model's but evenly spread fp32 numbers, so weights of another type do not matter.
    """
    if not may_be_mapped(model):
        return LogitMap()
    settings, hints = model.config.get_text_config().to_dict(), _hints(model)
    kept: list[Tensor] = []

    def replaced(module: nn.Module, given: Any, out: Tensor) -> Tensor:
        kept.append(torch.linspace(-MEASURED, MEASURED, out.numel(), device=out.device).reshape(out.shape))
        return kept[0]

    hook = model.get_output_embeddings().register_forward_hook(replaced)
    try:
        logits = model(input_ids=torch.arange(PROBE)[None] % settings["vocab_size"], use_cache=False).logits.double()
    finally:
        hook.remove()
    linear = kept[0].double()
    for cap in (None, *sorted(hints)):
        found = logits if cap is None else cap * torch.atanh((logits / cap).clamp(-1 + 1e-12, 1 - 1e-12))
        scale = float((found * linear).sum() / (linear * linear).sum())
        again = scale * linear if cap is None else cap * torch.tanh(scale * linear / cap)
        if (again - logits).abs().max() <= CLOSE * logits.abs().max():
            return LogitMap(_named(scale, hints), cap)
    return LogitMap()


def _named(scale: float, hints: set[float]) -> float:
    named = (value for hint in {1.0, *hints} for value in (hint, 1 / hint))
    return next((value for value in named if abs(scale / value - 1) < CLOSE), scale)


def capped_logprobs(
    hidden: Float[Tensor, "rows width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, " vocabulary"] | None,
    following: Following,
    temperature: Float[Tensor, " rows"],
    logits: LogitMap,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """As `linear_logprobs` does, of capped logits."""
    pairs = [(temperature.new_empty(0), temperature.new_empty(0))]
    with torch.no_grad():
        for rows in _rows(len(hidden), tokens_of_chunk(len(weight), hidden.device)):
            linear, edges = nn.functional.linear(hidden[rows], weight, bias).to(temperature.dtype), following.of(rows)
            pairs.append(_outputs(logits(linear, temperature[rows]), edges.row, edges.targets))
    return following.of_tokens(pairs)


class CappedProjection:
    """As `Projection`, of capped logits. Products are in the type of `hidden`; their gradients are gathered in fp32.

    Rows that several chunks have are projected by each of them.
    """

    def __init__(
        self,
        hidden: Float[Tensor, "rows width"],
        weight: Float[Tensor, "vocabulary width"],
        bias: Float[Tensor, " vocabulary"] | None,
        following: Following,
        temperature: Float[Tensor, " rows"],
        logits: LogitMap,
    ) -> None:
        self._hidden, self._parameters, self._following, self._logits = hidden.detach(), (weight, bias), following, logits
        self._kind = torch.promote_types(hidden.dtype, torch.float32)
        self._temperature = temperature.to(self._kind)
        self._of_hidden = torch.zeros_like(self._hidden, dtype=self._kind)
        self._of = [None if p is None or not p.requires_grad else torch.zeros_like(p, dtype=self._kind) for p in self._parameters]

    def __call__(self, chunk: RowsOfChunk) -> tuple[Float[Tensor, " chunk"], Float[Tensor, " chunk"]]:
        """Logprobs and entropies of a chunk's tokens, with a gradient that is gathered here."""
        weight, bias = self._parameters
        edge = self._following.edge[chunk.tokens]
        rows, place = torch.unique(self._following.row[edge], return_inverse=True)
        hidden = self._hidden[rows]
        with torch.no_grad():
            linear = nn.functional.linear(hidden, weight, bias).to(self._kind)
        linear.requires_grad_()

        def take(gradient: Tensor) -> None:
            of_weight, of_bias = self._of
            with torch.no_grad():
                rounded = gradient.to(hidden.dtype)
                self._of_hidden[rows] += (rounded @ weight).to(self._kind)
                if of_weight is not None:
                    of_weight += rounded.T @ hidden
                if of_bias is not None:
                    of_bias += gradient.sum(0)

        linear.register_hook(take)  # type: ignore[no-untyped-call]
        logprobs, entropy = _outputs(self._logits(linear, self._temperature[rows]), place, self._following.targets[edge])
        return logprobs, entropy[place]

    def backward(self, hidden: Float[Tensor, "rows width"]) -> None:
        """Carry on what the chunks gave.

        Args:
            hidden: what this was made from, with the model's graph.
        """
        of = [None if g is None or p is None else g.to(p.dtype) for g, p in zip(self._of, self._parameters, strict=True)]
        of_hidden = self._of_hidden.to(hidden.dtype)
        torch.autograd.backward(HandOver.apply((of_hidden, *of), hidden, *self._parameters))  # type: ignore[no-untyped-call]


def _outputs(logits: Tensor, row: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logprobs of tokens that follow some rows, and the entropies of the rows."""
    every = logits.log_softmax(-1)
    return every[row, targets], -(every.exp() * every).sum(-1)


def _rows(count: int, most: int) -> Iterator[slice]:
    for start in range(0, count, most):
        yield slice(start, min(start + most, count))
