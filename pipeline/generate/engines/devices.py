"""Which devices each of several engines on this machine has to itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from pipeline.common.device import has_gpu, visible_gpus
from pipeline.common.errors import UserError
from pipeline.config.engine import EngineConfig


def shares(config: EngineConfig) -> list[dict[str, str]]:
    """Variables of each engine's process; one alone has whatever there is, and needs none.

    Raises:
        UserError: there are not as many GPUs.
    """
    return shares_of_gpus(config, visible_gpus()) if has_gpu() else shares_of_cores(config, _cores())


def refuse_args(config: EngineConfig) -> None:
    """
    Raises:
        UserError: a setting that vLLM cannot be used with on this machine.
    """
    if config.args.get("enable_chunked_prefill") and not has_gpu():
        raise UserError("engine.args: enable_chunked_prefill: on a CPU vLLM cannot draw from seeds once a prefill is split")


def described(shares: Sequence[Mapping[str, str]]) -> str | None:
    """Several engines in words; None for one.

    >>> described(shares_of_cores(EngineConfig(replicas=2), 8))
    '2 on this machine, 4 threads each'
    >>> described(shares_of_gpus(EngineConfig(), ("0", "1")))
    '2 on this machine, 1 GPU each'
    """
    if len(shares) == 1:
        return None
    gpus, threads = shares[0].get("CUDA_VISIBLE_DEVICES"), shares[0].get("OMP_NUM_THREADS")
    count, what = (gpus.count(",") + 1, "GPU") if gpus is not None else (int(threads or 1), "thread")
    return f"{len(shares)} on this machine, {count} {what}{'s' if count > 1 else ''} each"


def shares_of_gpus(config: EngineConfig, gpus: tuple[str, ...]) -> list[dict[str, str]]:
    """
    >>> shares_of_gpus(EngineConfig(tensor_parallel_size=2), ("0", "1", "2", "3", "4"))
    [{'CUDA_VISIBLE_DEVICES': '0,1'}, {'CUDA_VISIBLE_DEVICES': '2,3'}]
    """
    each, there = config.gpus, len(gpus)
    count = max(there // each, 1) if config.replicas == "auto" else config.replicas
    if count > 1 and count * each > there:
        raise UserError(
            f"engine.replicas: {count} engines of {each} GPUs each take {count * each}, and {there} are visible here. "
            "Set it to auto, or to fewer"
        )
    if count == 1:
        return [{}]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * each : (i + 1) * each])} for i in range(count)]


def shares_of_cores(config: EngineConfig, cores: int) -> list[dict[str, str]]:
    """
    >>> shares_of_cores(EngineConfig(replicas=2), 8)
    [{'OMP_NUM_THREADS': '4'}, {'OMP_NUM_THREADS': '4'}]
    """
    count = 1 if config.replicas == "auto" else config.replicas
    return [{}] if count == 1 else [{"OMP_NUM_THREADS": str(max(cores // count, 1))} for _ in range(count)]


def _cores() -> int:
    """Cores that this process may use, or as many threads as its environment wants, if those are fewer."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(there, int(wanted)) if wanted.isdigit() and int(wanted) else there
