"""Norms and gated MLPs in fewer passes over memory.

What lies between the matrix products of a training step waits for memory. Written out as many small operations, autograd reads
and writes whole activations for each; here forward and backward go through some rows at a time, which stay in the cache, and
what is cheap to compute again is not kept.

    norm  y = w x r,  r = (mean x^2 + eps)^-1/2         dx = r (w dy - x r mean(w dy x r)),   dw = sum dy x r
    gate  h = silu(g) u,  silu(g) = g sigmoid(g)        dg = dh u silu'(g),   du = dh silu(g)

A module takes part if it is of a class that is written like this and gives the same on numbers drawn for the purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

NORMS = {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}
MLPS = {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"}
CACHED = 1 << 17
"""Numbers of a tensor that are worked on at once: 512 KiB in fp32."""
Rows = Float[Tensor, "rows width"]


def slim(model: nn.Module) -> int:
    """Give an fp32 model's norms and MLPs their lean forms, in place. Its parameters keep their names.

    Returns:
        How many modules took part.
    """
    count = 0
    for module in model.modules():
        lean = _lean_form(module)
        if lean is not None:
            module.forward = lean
            count += 1
    return count


def _lean_form(module: Any) -> Callable[[Tensor], Tensor] | None:
    name = type(module).__name__
    if name in NORMS:
        return _checked(module, partial(_norm_of, module), module.weight.shape[0])
    if name in MLPS and isinstance(module.act_fn, nn.SiLU | _silu_of_transformers()):
        return _checked(module, partial(_mlp_of, module), module.gate_proj.in_features)
    return None


def _silu_of_transformers() -> type[nn.Module]:
    from transformers.activations import ACT2FN

    return type(ACT2FN["silu"])


def _checked(module: nn.Module, lean: Callable[[Tensor], Tensor], width: int) -> Callable[[Tensor], Tensor] | None:
    """The lean form if it gives what the module gives."""
    place = next(module.parameters())
    drawn = torch.randn(3, 2, width, generator=torch.Generator().manual_seed(0)).to(place.device, place.dtype)
    with torch.no_grad():
        return lean if torch.allclose(lean(drawn), module(drawn), rtol=1e-4, atol=1e-5) else None


def _norm_of(module: Any, x: Tensor) -> Tensor:
    found: Tensor = _Norm.apply(x.reshape(-1, x.shape[-1]), module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
    return found.view(x.shape)


def _mlp_of(module: Any, x: Tensor) -> Tensor:
    gate, up = (part.view(-1, part.shape[-1]) for part in (module.gate_proj(x), module.up_proj(x)))
    between: Tensor = _Gate.apply(gate, up)  # type: ignore[no-untyped-call]
    found: Tensor = module.down_proj(between.view(*x.shape[:-1], -1))
    return found


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Rows, weight: Float[Tensor, " width"], epsilon: float) -> Rows:
        out, scale = torch.empty_like(x), x.new_empty(len(x), 1)
        for here in _pieces(x):
            torch.rsqrt(x[here].square().mean(-1, keepdim=True).add_(epsilon), out=scale[here])
            torch.mul(x[here], scale[here], out=out[here]).mul_(weight)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        (given,) = gradients
        of_x, of_weight = torch.empty_like(x), torch.zeros_like(weight)
        for here in _pieces(x):
            unit, share = x[here] * scale[here], given[here] * weight
            along = (share * unit).mean(-1, keepdim=True)
            of_weight += torch.mul(given[here], unit, out=of_x[here]).sum(0)
            torch.sub(share, unit.mul_(along), out=of_x[here]).mul_(scale[here])
        return of_x, of_weight, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Rows, up: Rows) -> Rows:
        out = torch.empty_like(gate)
        for here in _pieces(gate):
            torch.ops.aten.silu.out(gate[here], out=out[here]).mul_(up[here])
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (given,) = gradients
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        for here in _pieces(gate):
            torch.ops.aten.silu_backward.grad_input(given[here] * up[here], gate[here], grad_input=of_gate[here])
            torch.ops.aten.silu.out(gate[here], out=of_up[here]).mul_(given[here])
        return of_gate, of_up


def _pieces(rows: Rows) -> Iterator[slice]:
    step = max(1, CACHED // rows.shape[1])
    return (slice(start, start + step) for start in range(0, len(rows), step))
