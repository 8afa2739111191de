"""Whether a run fits this machine: what its engine, its trainer and its files will take, told before anything is started."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.device import has_gpu, resolve_dtype
from pipeline.common.errors import UserError
from pipeline.common.room import ADDRESS_SPACE, MemoryRoom, gpu_room, room_of_new_process
from pipeline.config.run import RunConfig
from pipeline.generate.engines.devices import shares_of_cores
from pipeline.run.estimates import EXPORTED, rollouts_bytes
from pipeline.train.needs import Kind, ModelSize, TrainingFit, choose, readable_gb, refusal, size_in

ENGINE_BYTES = 800 << 20
"""What vLLM's process has on a CPU before it has a model."""
LOGITS_IN_ENGINE = 16
"""fp32 copies of a batch's logits that vLLM's sampler has made room for on a CPU."""
TRAINER_SPACE, ENGINE_SPACE = 1050 << 20, 2900 << 20
"""Address space that trainer and engine have beside their memory on a CPU: libraries, stacks, room that glibc sets aside."""
FLOW_BYTES = 600 << 20
"""The process that runs the flow."""


@dataclass(frozen=True, kw_only=True)
class RoomOnMachine:
    """What one run will take, and what is there."""

    size: ModelSize
    fit: TrainingFit
    kind: Kind
    longest: int
    engine: int
    """Bytes of an engine on a CPU; 0 where it takes a share of a GPU, or runs elsewhere."""
    engines: int
    """How many of them there will be."""
    disk: int
    disk_without: int
    """The same if every checkpoint kept its weights."""
    free_disk: int


def room_for(config: RunConfig, files: Mapping[str, Path], longest: int) -> RoomOnMachine | None:
    """What a run will take; None if its model's settings do not say how large it is.

    Args:
        files: of the model.
        longest: tokens of the longest prompt with its completion.
    """
    size = size_in(files, config.train.lora)
    if size is None:
        return None
    kind: Kind = "cuda" if has_gpu() else "cpu"
    there = _there(kind, config.train.processes)
    fit = choose(size, config.train, resolve_dtype(config.model.dtype), kind, there.free, there.of, longest=longest)
    return RoomOnMachine(
        size=size,
        fit=fit,
        kind=kind,
        longest=longest,
        engine=_engine(config, size) if kind == "cpu" and not config.engine.server else 0,
        engines=len(shares_of_cores(config.engine, 1)),
        disk=_disk(config, size, config.keep.most(config.iterations)),
        disk_without=_disk(config, size, config.iterations),
        free_disk=_free_disk(config),
    )


def lines_of(room: RoomOnMachine) -> Iterator[str]:
    """What `rollbook check` says of it."""
    fit = room.fit
    how = f"{fit.tokens:,} tokens a pass{', activations recomputed' if fit.checkpointing else ''}"
    where = "the GPU" if room.kind == "cuda" else "memory"
    engine = f"; the engine about {readable_gb(room.engine)}" if room.engine else ""
    if room.engines > 1 and room.engine:
        engine = f"; {room.engines} engines about {readable_gb(room.engines * room.engine)}"
    there = f"{readable_gb(fit.free)} {fit.limited_by}"
    yield f"memory     training takes about {readable_gb(fit.bytes)} of {where} ({how}){engine}; {there}"
    yield f"disk       about {readable_gb(room.disk)} in all{_spared(room)}, {readable_gb(room.free_disk)} free"


def _spared(room: RoomOnMachine) -> str:
    return f" ({readable_gb(room.disk_without)} without `keep`)" if room.disk_without > room.disk else ""


def refuse_unfit(room: RoomOnMachine, config: RunConfig) -> None:
    """
    Raises:
        UserError: the trainer or the engine cannot have the memory that it needs.
    """
    if not room.fit.fits:
        dtype = resolve_dtype(config.model.dtype)
        raise UserError(refusal(room.fit, room.size, config.train, dtype, room.kind, room.longest))
    there = room_of_new_process(ENGINE_SPACE)
    needed = room.engine * (1 if there.of == ADDRESS_SPACE else room.engines)
    if needed > there.free:
        several = room.engines > 1
        raise UserError(
            f"{f'the {room.engines} engines do' if several else 'the engine does'} not fit: vLLM needs about "
            f"{readable_gb(needed)} for this model on a CPU, and {readable_gb(there.free)} is there, {there.of}. What would fit: "
            f"{'fewer engine.replicas, ' if several else ''}a smaller "
            f"engine.kv_cache_mib (it is {config.engine.kv_cache_mib}) or engine.max_num_seqs (it is "
            f"{config.engine.max_num_seqs}), a smaller model, or a server elsewhere (engine.server)"
        )


def _there(kind: Kind, processes: int) -> MemoryRoom:
    """What a training process may have in all."""
    if kind == "cuda" and (found := gpu_room()):
        return found
    room = room_of_new_process(TRAINER_SPACE)
    return MemoryRoom(free=room.free if room.of == ADDRESS_SPACE else max(0, room.free - FLOW_BYTES) // processes, of=room.of)


def _engine(config: RunConfig, size: ModelSize) -> int:
    logits = LOGITS_IN_ENGINE * 4 * min(config.engine.max_num_seqs, _asked(config)) * size.vocabulary
    return ENGINE_BYTES + 4 * size.weights + (config.engine.kv_cache_mib << 20) + logits


def _asked(config: RunConfig) -> int:
    return config.generate.prompts * config.generate.samples


def _disk(config: RunConfig, size: ModelSize, kept: int) -> int:
    """Checkpoints (the base's copy among them), the resume points of one training, rollouts and answers.

    Args:
        kept: checkpoints that have weights at once, beside the base's.
    """
    checkpoints = (kept + 1) * EXPORTED * size.weights
    steps = config.train.epochs * max(_asked(config) // config.train.batch_completions, 1)
    points = min(2, (steps - 1) // config.train.save_every_steps) * 12 * size.trained
    moments = 16 * size.trained if config.train.carries and config.iterations > 1 else 0  # the old ones beside the new
    return checkpoints + max(points, moments) + config.iterations * rollouts_bytes(_asked(config), config.generate.max_tokens)


def _free_disk(config: RunConfig) -> int:
    place = config.directory if "://" in config.store_url else Path(config.store_url)
    existing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
