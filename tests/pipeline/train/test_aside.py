"""Moments that are offloaded: the same weights to the byte, from wherever they went on, and by whoever."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.common.errors import StageFailed
from pipeline.store import Artifact
from pipeline.train.aside import AdamWAside

Train = Callable[..., Artifact]
SHAPES = ((7, 5), (5,), (3, 2, 2), (0, 4))


def masters() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]


def test_the_update_is_that_of_adamw_to_the_bit(tmp_path: Path) -> None:
    ours, theirs = masters(), masters()
    settings: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.1}
    aside = AdamWAside(ours, tmp_path, **settings)
    plain = torch.optim.AdamW(theirs, fused=True, **settings)
    random = torch.Generator().manual_seed(1)
    for step in range(4):
        for one, other in zip(ours, theirs, strict=True):
            if step == 2 and one.ndim == 1:  # no gradient: not taken
                one.grad = other.grad = None
                continue
            one.grad = torch.randn(one.shape, generator=random)
            other.grad = one.grad.clone()
        for group in (*aside.param_groups, *plain.param_groups):
            group["lr"] = 0.1 / (step + 1)
        aside.step()
        plain.step()
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(aside.brought(one)[name], value) for name, value in plain.state[other].items())
        assert set(aside.state[one]) == {"step"}
    assert list(tmp_path.iterdir()) == []
    aside.forget()
    assert aside.brought(ours[0]) == {}


def test_a_full_disk_is_told_before_anything_is_written_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.posix_fallocate", full)
    (one, *_) = masters()
    one.grad = torch.ones_like(one)
    with pytest.raises(StageFailed, match="No space left on device"):
        AdamWAside([one], tmp_path, lr=0.1).step()


def test_a_training_is_the_same_with_its_moments_on_the_disk(bench: Any, train_spec: Train) -> None:
    plain = bench.train(save_every_steps=2)
    spec = bench.spec(save_every_steps=2, offload_optimizer=True)
    assert spec["request"] == bench.spec(save_every_steps=2)["request"]
    bench.store.discard(plain.manifest.content.request) if False else None
    other = train_spec({**spec, "store": str(bench.store.root.parent / "other")})
    assert other.id == plain.id
    assert other.manifest.provenance.notes["settings"]["offload_optimizer"] is True
