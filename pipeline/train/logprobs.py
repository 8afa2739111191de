"""Logprobs and entropies of chosen tokens without ever holding all logits.

The vocabulary projection runs in chunks of positions and is recomputed in the backward pass, so peak memory is
chunk x vocabulary, whatever the number of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_LOGITS = 1 << 24
"""Logits held at once: 64 MiB in fp32."""


def linear_logprobs(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, " vocabulary"] | None,
    targets: Int[Tensor, " tokens"],
    temperature: Float[Tensor, " tokens"],
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """log p(target) and the entropy of softmax((hidden W^T + bias) / temperature), in fp32 (fp64 for fp64 input).

    Both results are differentiable in hidden, weight and bias.
    """
    rows = max(1, CHUNK_LOGITS // weight.shape[0])
    logprobs, entropy = _LinearLogprobs.apply(hidden, weight, bias, targets, temperature, rows)  # type: ignore[no-untyped-call]
    return logprobs, entropy


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: Tensor, rows: int
    ) -> tuple[Tensor, Tensor]:
        parts = []
        for part in _chunks(len(targets), rows):
            logits = _logits(hidden[part], weight, bias, temperature[part])
            normalizer = logits.logsumexp(-1)
            chosen = logits.gather(-1, targets[part, None]).squeeze(-1)
            expected = ((logits - normalizer[:, None]).exp() * logits).sum(-1)
            parts.append((chosen - normalizer, normalizer - expected, normalizer))
        empty = temperature.new_zeros(0)
        logprobs, entropy, normalizers = (torch.cat(column) for column in zip(*parts, strict=True)) if parts else (empty,) * 3
        ctx.save_for_backward(hidden, weight, bias, targets, temperature, entropy, normalizers)
        ctx.rows = rows
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        of_logprob, of_entropy = gradients
        hidden, weight, bias, targets, temperature, entropy, normalizers = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=normalizers.dtype)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=normalizers.dtype)
        for part in _chunks(len(targets), ctx.rows):
            log_p = _logits(hidden[part], weight, bias, temperature[part]) - normalizers[part, None]
            p = log_p.exp()
            of_logits = torch.zeros_like(p)
            if of_logprob is not None:
                of_logits -= of_logprob[part, None] * p
                of_logits.scatter_add_(-1, targets[part, None], of_logprob[part, None].to(p.dtype))
            if of_entropy is not None:
                of_logits -= of_entropy[part, None] * p * (log_p + entropy[part, None])
            of_logits /= temperature[part, None]
            of_hidden[part] = of_logits.to(hidden.dtype) @ weight.to(hidden.dtype)
            of_weight += of_logits.T @ hidden[part].to(of_logits.dtype)
            if of_bias is not None:
                of_bias += of_logits.sum(0)
        return of_hidden, of_weight.to(weight.dtype), None if of_bias is None else of_bias.to(bias.dtype), None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: Tensor) -> Tensor:
    logits = hidden @ weight.to(hidden.dtype).T
    logits = logits.to(temperature.dtype)
    if bias is not None:
        logits = logits + bias
    return logits / temperature[:, None]


def _chunks(length: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, length)) for start in range(0, length, rows)]
