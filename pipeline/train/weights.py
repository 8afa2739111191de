"""The weights in training: fp32 masters that the optimizer changes, and what the model computes with.

    one process, float32     the model's own weights are the masters
    one process, bfloat16    the model holds bf16 copies; gradients are added up in fp32 on the masters
    several, either type     FSDP2: every rank holds some rows of each fp32 master; layer by layer the rest is gathered, in
                             the compute type, and gradients are summed over ranks in fp32

Frozen weights (under LoRA) have no masters and are held in the compute type.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from pipeline.train.team import Team

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_of_files(directory: Path) -> torch.dtype | None:
    """The one type that the tensors of a model's files have; None if there are several, or none that can be widened exactly."""
    named = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    found: set[str] = set()
    for path in directory.glob("*.safetensors"):
        file: Any
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    return named.get(found.pop()) if len(found) == 1 else None


def buffers_of(config: Any, *, trust_remote_code: bool) -> dict[str, Tensor]:
    """The buffers of a model in fp32 as its code makes them, without its weights taking memory.

    Args:
        config: transformers' settings of the model.
    """
    from transformers import AutoModelForCausalLM

    def without_values(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    make: Any = AutoModelForCausalLM
    register: Any = register_module_parameter_registration_hook  # whose annotation knows no hook that gives something back
    hook = register(without_values)
    try:
        model = make.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    finally:
        hook.remove()
    return dict(model.named_buffers())


class Masters:
    """fp32 masters by name, and the copies to refresh after the optimizer has changed them."""

    def __init__(self, model: nn.Module, dtype: str, *, copied: bool) -> None:
        """Take a model's trained weights, which must be fp32.

        Args:
            dtype: what the model computes in.
            copied: whether to give the model copies in that type, and to cast its frozen weights. Without it the model's
                weights stay as they are.
        """
        self._model = model
        self._copies: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        if not copied:
            return
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                master = nn.Parameter(parameter.detach().clone())
                self._copies[name] = master, parameter
                parameter.register_post_accumulate_grad_hook(partial(_hand_over, master))  # type: ignore[no-untyped-call]
            parameter.data = parameter.data.to(TYPES[dtype])

    def __call__(self) -> dict[str, nn.Parameter]:
        """Masters by the names that transformers gives them; tied ones once."""
        if self._copies:
            return {name: master for name, (master, _) in self._copies.items()}
        return {name: parameter for name, parameter in self._model.named_parameters() if parameter.requires_grad}

    def refresh(self) -> None:
        """Bring the model up to date with its masters."""
        with torch.no_grad():
            for master, copy in self._copies.values():
                copy.copy_(master)


def _hand_over(master: nn.Parameter, copy: nn.Parameter) -> None:
    """Add a copy's gradient to its master's, in fp32."""
    assert copy.grad is not None
    gradient = copy.grad.to(master.dtype)
    master.grad = gradient if master.grad is None else master.grad.add_(gradient)
    copy.grad = None


def hold_own_rows(model: nn.Module, dtype: str, team: Team) -> None:
    """Hold what is trained in fp32 and the rest in the compute type, of what changes its type only the rows that this rank keeps.

    Memory of the other rows is reserved and never touched, so a rank does not take that of a whole model. `shard` drops it.
    """
    for parameter in model.parameters():
        wanted = torch.float32 if parameter.requires_grad else TYPES[dtype]
        if parameter.dtype != wanted:
            wide = torch.empty_like(parameter.data, dtype=wanted)
            rows = _rows_of_rank(parameter.data, team)
            wide[rows] = parameter.data[rows].to(wanted)
            parameter.data = wide


def shard(root: nn.Module, layers: list[nn.Module], dtype: str, team: Team) -> None:
    """Spread the weights over the ranks: each layer a group of its own, all else in the root's.

    Gradients are summed over ranks, not averaged: every rank adds its own share of the step's loss.
    """
    mixed = MixedPrecisionPolicy() if dtype == "float32" else MixedPrecisionPolicy(TYPES[dtype], reduce_dtype=torch.float32)
    for module in [*layers, root]:
        # The root's weights stay gathered until the backward pass: the head's are read when its forward pass is over.
        sharded: Any = fully_shard(module, mesh=team.mesh, mp_policy=mixed, reshard_after_forward=module is not root)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    assert isinstance(root, FSDPModule)


def layers_of(model: Any) -> list[nn.Module]:
    """The model's repeated blocks, as transformers names them; none if it names none."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def whole(value: Tensor) -> Tensor:
    """All of a weight that may be spread over ranks, on the CPU. Every rank must ask."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def own_rows(value: Tensor, team: Team) -> tuple[Tensor, int]:
    """The rows of a weight that this rank holds, and the number of the first.

    Rows are dealt as `torch.chunk` cuts them.
    """
    value = value.detach()
    if not isinstance(value, DTensor):
        return value, 0
    here, rows = _rows_of_rank(value, team), value.to_local()
    assert len(rows) == here.stop - here.start, (rows.shape, value.shape)
    return rows, here.start


def _rows_of_rank(value: Tensor, team: Team) -> slice:
    per_rank = -(-value.shape[0] // team.size)
    start = min(team.rank * per_rank, value.shape[0])
    return slice(start, min(start + per_rank, value.shape[0]))
