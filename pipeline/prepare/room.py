"""Whether a run fits this machine: what its engine, its trainer and its files will take, told before anything is started."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.device import has_gpu, resolve_dtype
from pipeline.common.errors import UserError
from pipeline.common.room import (
    ADDRESS_SPACE,
    OF_EACH_PROCESS,
    MemoryRoom,
    Reserved,
    address_space_limit,
    gpu_room,
    room_of_new_process,
    shared_room,
)
from pipeline.config.run import RunConfig
from pipeline.generate.engines.devices import shares_of_cores
from pipeline.prepare.others import Beside
from pipeline.run.estimates import EXPORTED, rollouts_bytes
from pipeline.train.needs import (
    Kind,
    ModelSize,
    TrainingFit,
    choose,
    readable_gb,
    refusal,
    room_for_moments,
    scoring_need,
    size_in,
)

ENGINE_BYTES = 800 << 20
"""What vLLM's process has on a CPU before it has a model."""
LOGITS_IN_ENGINE = 16
"""fp32 copies of a batch's logits that vLLM's sampler has made room for on a CPU."""
TRAINER_RESERVED = Reserved(address=1850 << 20, data=1100 << 20)
ENGINE_RESERVED = Reserved(address=2400 << 20, data=700 << 20)
"""What trainer and engine have beside their memory on a CPU."""
LOGITS_OF_MIXTURE = 3
"""Those that a mixture makes beside them: the other model's, and both with shares."""
FLOW_BYTES = 600 << 20
"""The process that runs the flow."""
FLOW_ADDRESSES = 3600 << 20
"""Its address space, nearly all of it set aside by libraries for their threads and never touched."""


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
    drawn_by_two: bool
    """Whether an engine holds another model beside the policy, which is counted in `engine`."""
    scoring: int
    """Bytes of the largest model that scores before a training; 0 if none does."""
    disk: int
    disk_without: int
    """The same if every checkpoint kept its weights."""
    free_disk: int


def room_for(config: RunConfig, files: Mapping[str, Path], longest: int, others: Beside | None = None) -> RoomOnMachine | None:
    """What a run will take; None if its model's settings do not say how large it is.

    Args:
        files: of the model.
        longest: tokens of the longest prompt with its completion.
        others: the models that the run needs beside its own. Those whose settings do not say how large they are do not count.
    """
    others = others or Beside()
    size = size_in(files, config.train.lora)
    if size is None:
        return None
    kind: Kind = "cuda" if has_gpu() else "cpu"
    there = _there(kind, config.train.processes)
    dtype = resolve_dtype(config.model.dtype)
    processes = config.train.processes
    beside = room_for_moments(kind, there.of, shared_room().free // processes, _free_disk(config) // processes)
    fit = choose(size, config.train, dtype, kind, there.free, there.of, longest=longest, beside=beside)
    drawn_by, scored_by, elsewhere = (
        [one for one in map(size_in, models) if one] for models in (others.drawn_by, others.scored_by, others.elsewhere)
    )
    other = max((one.weights for one in drawn_by), default=0)
    scoring = (scoring_need(one, config.train, dtype, kind, there.free, longest) for one in scored_by)
    more = EXPORTED * sum(one.weights for one in elsewhere)
    return RoomOnMachine(
        size=size,
        fit=fit,
        kind=kind,
        longest=longest,
        engine=_engine(config, size, other) if kind == "cpu" and not config.engine.server else 0,
        engines=len(shares_of_cores(config.engine, 1)),
        drawn_by_two=bool(other),
        scoring=max(scoring, default=0),
        disk=_disk(config, size, config.keep.most(config.iterations)) + more,
        disk_without=_disk(config, size, config.iterations) + more,
        free_disk=_free_disk(config),
    )


def lines_of(room: RoomOnMachine) -> Iterator[str]:
    """What `rollbook check` says of it."""
    fit = room.fit
    how = f"{fit.tokens:,} tokens a pass{', activations recomputed' if fit.checkpointing else ''}"
    how += ", AdamW's moments offloaded" if fit.offload else ""
    where = "the GPU" if room.kind == "cuda" else "memory"
    engine = f"; the engine about {readable_gb(room.engine)}" if room.engine else ""
    if room.engines > 1 and room.engine:
        engine = f"; {room.engines} engines about {readable_gb(room.engines * room.engine)}"
    engine += ", with both models" if room.engine and room.drawn_by_two else ""
    scoring = f"; scoring about {readable_gb(room.scoring)}" if room.scoring else ""
    there = f"{readable_gb(fit.free)} {fit.limited_by}"
    yield f"memory     training takes about {readable_gb(fit.bytes)} of {where} ({how}){scoring}{engine}; {there}"
    yield f"disk       about {readable_gb(room.disk)} in all{_spared(room)}, {readable_gb(room.free_disk)} free"


def _spared(room: RoomOnMachine) -> str:
    return f" ({readable_gb(room.disk_without)} without `keep`)" if room.disk_without > room.disk else ""


def refuse_unfit(room: RoomOnMachine, config: RunConfig) -> None:
    """
    Raises:
        UserError: the run's own process, the trainer, what scores or the engine cannot have the memory that it needs.
    """
    limit = address_space_limit()
    if limit is not None and limit < FLOW_ADDRESSES:
        raise UserError(
            f"the run does not fit: its own process needs about {readable_gb(FLOW_ADDRESSES)}, most of it addresses that "
            f"libraries set aside and never touch, and {readable_gb(limit)} is there, {ADDRESS_SPACE}. What would fit: a higher "
            "limit; or one of memory, not of addresses, by a cgroup (`systemd-run --scope -p MemoryMax=6G rollbook run ...`)"
        )
    if not room.fit.fits:
        dtype = resolve_dtype(config.model.dtype)
        raise UserError(refusal(room.fit, room.size, config.train, dtype, room.kind, room.longest))
    if room.scoring > room.fit.free:
        raise UserError(
            f"scoring does not fit: the largest model that scores needs about {readable_gb(room.scoring)}, and "
            f"{readable_gb(room.fit.free)} is there, {room.fit.limited_by}. What would fit: a smaller model as the reference, or "
            "an algorithm that reads no reference"
        )
    there = room_of_new_process(ENGINE_RESERVED, room.engines)
    if room.engine > there.free:
        together = 1 if there.of in OF_EACH_PROCESS else room.engines
        several = room.engines > 1
        models = "this model and the one that it is mixed with" if room.drawn_by_two else "this model"
        raise UserError(
            f"{f'the {room.engines} engines do' if several else 'the engine does'} not fit: vLLM needs about "
            f"{readable_gb(together * room.engine)} for {models} on a CPU, and {readable_gb(together * there.free)} is there, "
            f"{there.of}. What would fit: "
            f"{'fewer engine.replicas, ' if several else ''}a smaller "
            f"engine.kv_cache_mib (it is {config.engine.kv_cache_mib}) or engine.max_num_seqs (it is "
            f"{config.engine.max_num_seqs}), a smaller model, or a server elsewhere (engine.server)"
        )


def _there(kind: Kind, processes: int) -> MemoryRoom:
    """What a training process may have in all."""
    if kind == "cuda" and (found := gpu_room()):
        return found
    return room_of_new_process(TRAINER_RESERVED, processes, FLOW_BYTES)


def _engine(config: RunConfig, size: ModelSize, other: int) -> int:
    """
    Args:
        other: weights of the model that it is mixed with.
    """
    copies = LOGITS_IN_ENGINE + (LOGITS_OF_MIXTURE if other else 0)
    logits = copies * 4 * min(config.engine.max_num_seqs, _asked(config)) * size.vocabulary
    return ENGINE_BYTES + 4 * (size.weights + other) + (config.engine.kv_cache_mib << 20) + logits


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
