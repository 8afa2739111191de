"""Real worker processes for every test; `own` writes a module of graders into a fresh working directory."""

from __future__ import annotations

import os
import textwrap
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.rewards.pool import RewardItem, RewardPool, RewardResult

Grade = Callable[..., list[RewardResult]]


@pytest.fixture
def grade() -> Grade:
    """grade(components, items, **limits): the results, from a pool of their own."""

    def run(components: Sequence[RewardComponent], items: Sequence[RewardItem], **limits: Any) -> list[RewardResult]:
        with RewardPool(RewardConfig(components=tuple(components), **limits)) as pool:
            return pool.submit(items).result(timeout=60)

    return run


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """own(source): the name of a new module with that source, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # a relative entry would now mean another directory

    def write(source: str) -> str:
        name = f"own_{uuid.uuid4().hex[:12]}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        return name

    return write


@pytest.fixture
def wait_until_gone() -> Callable[[str], list[str]]:
    """wait_until_gone(text): command lines that still hold the text after 10 seconds; [] as soon as there are none."""

    def running(text: str) -> list[str]:
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line and int(pid) != os.getpid():
                found.append(f"{pid}: {line}")
        return found

    def wait(text: str) -> list[str]:
        deadline = time.monotonic() + 10
        while (found := running(text)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    return wait
