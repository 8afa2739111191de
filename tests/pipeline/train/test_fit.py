"""A training fits itself to the memory that is there, says what it cannot fit, and goes on as it began."""

from __future__ import annotations

import gc
import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.common.room import ADDRESS_SPACE, MemoryRoom
from pipeline.config.train import TrainConfig
from pipeline.run.process import Reporter
from pipeline.train import fit as fitting
from pipeline.train.fit import weigh
from pipeline.train.model import Policy
from pipeline.train.needs import (
    ModelSize,
    choose,
    fixed_bytes,
    pass_bytes,
    refusal,
    room_for_moments,
    rounded,
    size_of,
    training_need,
)
from pipeline.train.team import alone

SMOLLM2 = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
GB = 10**9


def smollm2() -> ModelSize:
    found = size_of(SMOLLM2, 134_515_008)
    assert found is not None
    return found


def chosen(free: float, **settings: Any) -> Any:
    return choose(smollm2(), TrainConfig(**settings), "float32", "cpu", int(free), "free", longest=128)


class Noted(Reporter):
    """Keeps what it is told."""

    def __init__(self, killed_at: int | None = None) -> None:
        super().__init__(os.open(os.devnull, os.O_WRONLY))
        self.notes: list[str] = []
        self.killed_at = killed_at

    def note(self, message: str) -> None:
        self.notes.append(message)

    def progress(self, done: float, total: float, unit: str, **fields: Any) -> None:
        if done == self.killed_at:
            raise KeyboardInterrupt


def test_what_a_token_keeps_follows_from_the_widths() -> None:
    # 6 · 576 of norms and residuals, 2 · (9 + 3) · 64 of attention, 4 · 1,536 of the MLP: 11,136 in each of 30 layers.
    assert smollm2().kept == 30 * (3456 + 1536 + 6144) == 334_080
    assert smollm2().per_token("float32", checkpointing=False) == 4 * 334_080
    assert smollm2().per_token("bfloat16", checkpointing=True) == 2 * (30 * 576 + 1.5 * 11_136)


def test_what_a_training_has_whatever_its_passes_are() -> None:
    # Process, tiles, 16 bytes a weight, and the gradient of a 49,152 x 576 projection twice over.
    expected = (550 << 20) + 2 * 4 * 1024 * 4096 + 16 * 134_515_008 + 2 * 4 * 49152 * 576
    assert fixed_bytes(smollm2(), "float32", "cpu") == expected
    assert pass_bytes(smollm2(), "float32", "cpu", 1000, checkpointing=False) == int(4000 * 49152 + 1.15 * 1000 * 4 * 334_080)


def test_with_much_memory_a_pass_gets_what_is_worth_it() -> None:
    fit = chosen(100 * GB)
    assert (fit.tokens, fit.checkpointing, fit.fits) == (1024, False, True)
    assert 4.5 * GB < fit.bytes < 5 * GB


def test_a_pass_is_not_taken_to_hold_more_than_a_step_has() -> None:
    assert chosen(64e9, batch_completions=4).bytes < chosen(64e9).bytes
    assert chosen(64e9, batch_completions=4).tokens == chosen(64e9).tokens


def test_with_less_memory_passes_are_smaller_then_activations_are_recomputed_then_it_is_refused() -> None:
    fits = [chosen(free * GB) for free in (4.6, 4, 3.45, 3.0)]
    assert [(fit.checkpointing, fit.fits) for fit in fits] == [(False, True), (False, True), (True, True), (True, False)]
    assert fits[0].tokens > fits[1].tokens
    assert all(fit.bytes <= 0.9 * fit.free for fit in fits[:3])


def test_moments_are_offloaded_before_it_is_refused_where_there_is_room_for_them() -> None:
    def of(free: float, beside: float, **settings: Any) -> tuple[bool, bool, bool]:
        config = TrainConfig(**settings)
        fit = choose(smollm2(), config, "float32", "cpu", int(free * GB), "free", longest=128, beside=int(beside * GB))
        return fit.checkpointing, fit.offload, fit.fits

    assert of(3.45, 100) == (True, False, True)
    assert of(3.0, 100) == (False, True, True)
    assert of(2.25, 100) == (True, True, True)
    assert of(1.9, 100) == (True, True, False)
    assert of(3.0, 1.0) == (True, False, False)  # 1.08 GB of moments
    assert of(3.0, 100, offload_optimizer=False) == (True, False, False)
    assert of(30, 0, offload_optimizer=True) == (False, True, True)


def test_what_counts_as_room_for_moments() -> None:
    assert room_for_moments("cuda", "on the GPU", 5, 7) == 5
    assert room_for_moments("cpu", "available on this machine", 5, 7) == 7
    assert room_for_moments("cpu", ADDRESS_SPACE, 5, 7) == 0  # a mapped file takes addresses too


@given(st.floats(0.5, 200), st.integers(16, 4000))
def test_what_is_chosen_fits_or_is_said_not_to(free: float, longest: int) -> None:
    fit = choose(smollm2(), TrainConfig(), "float32", "cpu", int(free * GB), "free", longest=longest)
    need = training_need(smollm2(), "float32", "cpu", fit.tokens, checkpointing=fit.checkpointing)
    assert fit.tokens >= longest and fit.bytes == need and fit.fits == (need <= 0.9 * fit.free)


def test_a_number_of_the_users_own_is_kept_and_refused_where_it_cannot_be() -> None:
    assert chosen(30 * GB, tokens_per_micro_batch=3000).tokens == 3000
    config = TrainConfig(tokens_per_micro_batch=3000, activation_checkpointing=False)
    fit = choose(smollm2(), config, "float32", "cpu", 6 * GB, "available on this machine", longest=128)
    assert not fit.fits
    said = refusal(fit, smollm2(), config, "float32", "cpu", 128)
    assert said.startswith("training does not fit: it needs about 8.")
    assert "6.0 GB is there, available on this machine" in said
    assert "train.tokens_per_micro_batch: auto" in said and "train.activation_checkpointing: auto" in said
    assert "train.lora" in said


@given(st.integers(4, 10**6))
def test_a_rounded_number_of_tokens_is_at_most_a_fifth_less(tokens: int) -> None:
    assert 0.8 * tokens <= rounded(tokens) <= tokens


@pytest.mark.parametrize("name", ["qwen2", "tied"])
def test_what_is_weighed_in_a_pass_is_what_the_widths_say(name: str, make_policy: Callable[..., Policy]) -> None:
    policy = make_policy(name)
    found, said = weigh(policy, 40, alone()), size_of(policy.model.config.to_dict(), 1)
    assert said is not None and found.layers == said.layers
    assert said.kept <= found.kept <= 1.6 * said.kept  # a layer so narrow also keeps scales of norms, and a row's positions
    assert found.weights == sum(parameter.numel() for parameter in policy.model.parameters())


def test_weighing_leaves_no_gradient_and_no_other_state(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    weigh(policy, 40, alone())
    assert all(parameter.grad is None for parameter in policy.model.parameters()) and not policy.model.training


def test_weighing_holds_nothing_of_the_model(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    weigh(policy, 40, alone())
    one = weakref.ref(next(policy.model.parameters()))
    del policy
    gc.collect()
    assert one() is None


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """room(bytes): what there is from now on."""

    def there(free: int) -> None:
        monkeypatch.setattr(fitting, "_room", lambda *_: MemoryRoom(free=free, of="available on this machine"))

    return there


def test_a_training_that_goes_on_makes_the_passes_that_it_began_with(
    bench: Any, train_spec: Any, room: Callable[[int], None], tmp_path: Path
) -> None:
    spec = bench.spec(save_every_steps=2)
    room(651 << 20)  # the least for a pass of the tiny model to be cut
    other = {**spec, "store": str(tmp_path / "other")}
    whole = train_spec(other)
    with pytest.raises(KeyboardInterrupt):
        train_spec(spec, Noted(killed_at=3))
    room(64 << 30)
    resumed = train_spec(spec)
    chosen = resumed.manifest.provenance.notes["memory"]
    assert chosen["tokens"] < 16384 and chosen["tokens"] == whole.manifest.provenance.notes["memory"]["tokens"]
    assert resumed.id == whole.id
    assert chosen["peak"] > 100 << 20


def test_where_activations_must_be_recomputed_they_are_and_it_is_said(
    bench: Any, train_spec: Any, room: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        fitting, "choose", lambda *args, **kwargs: fitting.TrainingFit(**{**FIT, "tokens": 64, "checkpointing": True})
    )
    noted = Noted()
    checkpoint = train_spec({**bench.spec(), "store": str(tmp_path / "a")}, noted)
    assert any("activations are recomputed" in note for note in noted.notes)
    assert checkpoint.manifest.provenance.notes["memory"]["checkpointing"] is True


FIT = {"tokens": 64, "checkpointing": False, "bytes": 1, "free": 2, "limited_by": "here", "fits": True}


def test_too_little_memory_is_refused_before_the_first_step(bench: Any, train_spec: Any, room: Callable[[int], None]) -> None:
    room(300 << 20)
    with pytest.raises(UserError, match=r"training does not fit: it needs about 0\.\d+ GB .* and 0\.31 GB is there, available"):
        train_spec(bench.spec())


def test_a_gpu_that_runs_out_of_memory_gets_half_the_tokens_and_the_step_anew(
    bench: Any, train_spec: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The fault cannot be had on a CPU, so it is thrown in the middle of the second step, when a gradient is there already."""
    spec, calls, own = bench.spec(tokens_per_micro_batch=64), [0], Policy.hidden
    smaller = train_spec({**bench.spec(tokens_per_micro_batch=64), "store": str(tmp_path / "smaller")})

    def hidden(self: Policy, batch: Any, cut: Any) -> Any:
        calls[0] += torch.is_grad_enabled() and self.masters is not None
        if calls[0] == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(self, batch, cut)

    monkeypatch.setattr(Policy, "hidden", hidden)
    noted = Noted()
    checkpoint = train_spec({**spec, "store": str(tmp_path / "halved")}, noted)
    assert any("ran out of memory: the step is begun anew with 32 tokens a pass" in note for note in noted.notes)
    assert checkpoint.manifest.provenance.notes["memory"]["tokens"] == 32
    assert checkpoint.summary["steps"] == smaller.summary["steps"]
    one, other = (json.dumps(a.summary["grad_norm"]) for a in (checkpoint, smaller))
    assert float(one) == pytest.approx(float(other), rel=1e-4)
