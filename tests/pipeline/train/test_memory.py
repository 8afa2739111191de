"""Whether the kernel is asked for memory again, told by page faults."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import pytest
import torch

from pipeline.train.memory import memory_kept

PAGES = 64 << 8
"""Of 64 MiB."""


def faults() -> int:
    """Page faults of filling a tensor of 64 MiB, which is freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(PAGES << 10)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    """Bytes of this process that lie in memory and that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_kept_inside_and_given_back_at_the_end() -> None:
    assert min(faults() for _ in range(8)) > 8
    with memory_kept():
        assert min(faults() for _ in range(8)) < 8
        before = resident()
    assert before - resident() > 32 << 20
