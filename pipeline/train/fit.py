"""A training fits itself to the memory that is there: before the first step, and once more where a GPU runs out of it.

What was chosen is written beside the resume points, so a training that goes on makes the same passes, and the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks

from pipeline.common.errors import UserError
from pipeline.common.room import MemoryRoom, host_room, room_in_all
from pipeline.config.train import TrainConfig
from pipeline.store.files import write_text
from pipeline.train import needs
from pipeline.train.batch import collate
from pipeline.train.model import Policy
from pipeline.train.needs import WIDTHS, Kind, ModelSize, TrainingFit, choose, readable_gb, refusal, rounded, size_of
from pipeline.train.snapshot import TrainingCompletion, TrainingGroup
from pipeline.train.team import Team
from pipeline.train.tree import PackedRow

FILE = "fit.json"
PROBED = (64, 128)
"""Lengths of two sequences whose activations are weighed: what grows with the square of the length shows in their difference."""


def fitted(
    policy: Policy, config: TrainConfig, scratch: Path, team: Team, longest: int, notify: Callable[[str], None]
) -> tuple[TrainConfig, TrainingFit]:
    """The settings with what is `auto` chosen. All ranks must come here; the leading one decides.

    Args:
        scratch: where resume points lie, and what was chosen.
        longest: tokens of the longest prompt with its completion.

    Raises:
        UserError: nothing fits; says what is needed, what is there, and what would fit.
    """
    kind: Kind = "cpu" if policy.device.type == "cpu" else "cuda"
    size = weigh(policy, longest, team)
    room = min((MemoryRoom(**one) for one in team.gather_json(vars(_room(policy, team)))), key=lambda one: one.free)
    beside = needs.room_for_moments(kind, room.of, host_room(team.size).free, shutil.disk_usage(scratch).free // team.size)
    fit = choose(size, config, policy.dtype, kind, room.free, room.of, longest=longest, beside=beside)
    if team.leads and (before := _recorded(scratch, config)) and before.bytes <= room.free:
        fit = before
    fit = TrainingFit(**team.gather_json({**fit.to_json(), "fits": fit.fits})[0])
    if not fit.fits:
        raise UserError(refusal(fit, size, config, policy.dtype, kind, longest))
    if team.leads:
        record(fit, scratch)
    if fit.checkpointing and config.activation_checkpointing == "auto":
        policy.recompute_activations()
        notify("activations are recomputed: without that, no pass fits the memory")
    if fit.offload and config.offload_optimizer == "auto":
        notify(f"AdamW's moments lie {'on the disk' if kind == 'cpu' else 'in the memory of the host'}: nothing else fits")
    print(f"fit: {fit.to_json()}, each token keeps {size.per_token(policy.dtype, checkpointing=False):,.0f} bytes", flush=True)
    return settled(config, fit), fit


def record(fit: TrainingFit, scratch: Path) -> None:
    """Write down what was chosen, for a training that goes on."""
    write_text(scratch / FILE, json.dumps(fit.to_json()))


def settled(config: TrainConfig, fit: TrainingFit) -> TrainConfig:
    """Settings as they were chosen."""
    chosen = {"activation_checkpointing": fit.checkpointing, "offload_optimizer": fit.offload}
    return config.model_copy(update={"tokens_per_micro_batch": fit.tokens, **chosen})


def scoring_tokens(policy: Policy, config: TrainConfig, longest: int, team: Team) -> int:
    """Tokens of a pass that only scores: no activations stay, so a layer's decide."""
    if config.tokens_per_micro_batch != "auto":
        return config.tokens_per_micro_batch
    size = weigh(policy, longest, team)
    free = min(one["free"] for one in team.gather_json(vars(_room(policy, team))))
    return needs.scoring_tokens(size, config, policy.dtype, free, longest)


def weigh(policy: Policy, longest: int, team: Team) -> ModelSize:
    """A model's size, with what its tokens keep for the backward pass as it is found in two forward passes.

    Nothing is measured of what is spread over ranks, compiled or recomputed: there the model's settings are believed.
    """
    model = policy.model
    weights = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    text = model.config.get_text_config()
    said = size_of(text.to_dict(), weights)
    vocabulary, width = model.get_output_embeddings().weight.shape
    layers = int(getattr(text, "num_hidden_layers", 1) or 1)
    kept = said.kept if said else 16 * layers * width
    if team.size == 1 and trained and not policy.compiled and not model.is_gradient_checkpointing:
        kept = max(1, round(_per_token(policy, longest) / WIDTHS[policy.dtype]))
    return ModelSize(weights=weights, trained=trained, vocabulary=vocabulary, width=width, layers=layers, kept=kept)


def _per_token(policy: Policy, longest: int) -> float:
    """Bytes that a token of the longest sequence keeps, from two short ones: a + b · length."""
    short, long = (min(length, max(longest, 16)) for length in PROBED)
    if short == long:
        return _kept(policy, long) / long
    each, more = _kept(policy, short) / short, _kept(policy, long) / long
    slope = max(0.0, (more - each) / (long - short))
    return more + slope * max(0, longest - long)


def _kept(policy: Policy, length: int) -> int:
    """Bytes that one sequence's forward pass keeps for its backward pass, weights not counted."""
    tokens = np.arange(length + 1, dtype=np.int32) % 7  # the last one is not computed
    half = length // 2
    one = TrainingCompletion("probe", 0, tokens[half:], None, np.ones(length + 1 - half, np.bool_))
    batch = collate([PackedRow.of(TrainingGroup(tokens[:half], [one]), [one])], policy.device)
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        """An output that a graph holds, and that holds the graph, would stay for good, the weights with it: so cut it off."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.hidden(batch, policy.cut(batch))
    return sum(seen.values())


def _room(policy: Policy, team: Team) -> MemoryRoom:
    """What this rank may have in all, what it has already included."""
    if policy.device.type == "cuda":
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
        return MemoryRoom(free=free, of="on the GPU")
    return room_in_all(team.size)


def _recorded(scratch: Path, config: TrainConfig) -> TrainingFit | None:
    """What was chosen before, if the settings of today would allow it."""
    try:
        found = TrainingFit(**json.loads((scratch / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    same_tokens = config.tokens_per_micro_batch in ("auto", found.tokens)
    same_ways = ((config.activation_checkpointing, found.checkpointing), (config.offload_optimizer, found.offload))
    return found if same_tokens and all(asked in ("auto", one) for asked, one in same_ways) else None


def halved(fit: TrainingFit, longest: int) -> TrainingFit:
    """The same with half the tokens a pass, after the GPU ran out of memory.

    Raises:
        UserError: a pass holds no more than the longest sequence already.
    """
    if fit.tokens <= longest:
        raise UserError(
            f"the GPU ran out of memory in a pass of {fit.tokens:,} tokens, and the longest prompt and completion have "
            f"{longest:,}; {readable_gb(fit.free)} were free. Set train.lora, train.activation_checkpointing: true, or a shorter "
            "generate.max_tokens"
        )
    return TrainingFit(**{**fit.to_json(), "tokens": max(longest, rounded(fit.tokens / 2))})
