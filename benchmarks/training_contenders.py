"""Who takes part in benchmarks/training_step.py, each on the same stored completions with the same loss and optimizer.

    rollbook  the train stage as `rollbook run` runs it.
    before    the same of an earlier commit, from a checkout of it.
    padded    a plain loop over transformers' model, written with care: rows [prompt, completion] of like length together,
              padded on the right to the longest of the batch, so that causal attention needs no mask; logits only from the
              shortest prompt of the batch on (logits_to_keep); no entropy, no metrics.
    kept      the padded loop with memory that it frees kept for its next step, as rollbook keeps it: where page faults are
              slow, as on many virtual machines, the allocator's default costs a loop with all logits more than its products.
    trl       TRL's GRPOTrainer with its own training loop; what it would generate is read from the stored completions.

The loss is PPO's clipped surrogate with the stored logprobs, clipped at 0.8 and 1.28, averaged over the step's tokens (TRL
calls it dapo); AdamW, fused; gradients clipped to norm 1; no KL term; no activation checkpointing.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from training_task import SHAPES, VOCABULARIES, Cell, Memory, stored

from pipeline.common.lengths import length

LOW, HIGH = 0.2, 0.28
RATE, BETAS, MAX_NORM = 1e-6, (0.9, 0.95), 1.0
TOKENS_PER_PASS = 16384
LOGITS_PER_PASS = 1 << 29
"""Logits that a contender without a tiled projection may hold at once: 2 GiB in fp32, of which it makes about three copies."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Places = dict[str, str]


@dataclass
class Timed:
    """What timing a contender gave."""

    seconds: list[float] = field(default_factory=list)
    """Of every optimizer step after the first."""
    cpu_seconds: list[float] = field(default_factory=list)
    """The same, of all threads together: what is left of the figure when other work shares the machine."""
    peak: int = 0
    """Memory over the state before the model was loaded, bytes, of the steps after the first."""


def rollbook(places: Places, cell: Cell, steps: int) -> Timed:
    """The train stage over one optimizer step's completions, again and again."""
    from pipeline.run.process import Reporter
    from pipeline.store.store import load_artifact
    from pipeline.train.stage import train

    memory, clock = Memory(), list[float]()

    class Watch(Reporter):
        def progress(self, done: float, total: float, unit: str, **fields: Any) -> None:
            clock.append(time.process_time())
            if done == 1:
                memory.reset()

    with TemporaryDirectory() as store:
        spec = train_spec(places, cell, steps + 1, store)
        artifact = load_artifact(train(spec, Watch(os.open(os.devnull, os.O_WRONLY)))["artifact"])
        seconds = pl.read_parquet(artifact.path / "timing.parquet")["seconds"].to_list()
    return Timed(seconds[1:], [end - start for start, end in itertools.pairwise(clock)], memory.peak())


def train_spec(places: Places, cell: Cell, epochs: int, store: str, **settings: Any) -> dict[str, Any]:
    """What the train stage is given."""
    from pipeline.config.run import RunConfig
    from pipeline.run.parts import Part
    from pipeline.store.store import load_artifact
    from pipeline.train.order import train_request

    train = {
        "algorithm": "dapo",
        "epochs": epochs,
        "batch_completions": SHAPES[cell.shape].completions,
        "tokens_per_micro_batch": TOKENS_PER_PASS,
        "learning_rate": RATE,
        "betas": BETAS,
        "max_grad_norm": MAX_NORM,
        "save_every_steps": 1_000_000,
        **settings,
    }
    data = {name: {"path": "none", "question": "none"} for name in ("train", "heldout")}
    reward = {"components": [{"grader": "exact_match"}]}
    model = {"path": places["checkpoint"], "dtype": cell.dtype}
    config = RunConfig.model_validate(
        {"name": "benchmark", "run_dir": store, "model": model, "data": data, "reward": reward, "train": train}
    )
    policy, rollouts, shaped = (load_artifact(places[kind]) for kind in ("checkpoint", "rollouts", "shaped"))
    parts = [Part(rollouts, shaped)]
    return {
        "store": store,
        "request": train_request(config, 0, policy, parts).to_json(),
        "policy": str(policy.path),
        "parts": [part.to_json() for part in parts],
        "train": config.train.model_dump(mode="json"),
        "trust_remote_code": False,
    }


def rollbook_gradient(places: Places, cell: Cell) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of the first step, by the stage's own parts."""
    from pipeline.algorithms import resolve
    from pipeline.config.train import TrainConfig
    from pipeline.run.parts import Part
    from pipeline.store.store import load_artifact
    from pipeline.train.feed import Feed
    from pipeline.train.layout import open_snapshot
    from pipeline.train.metrics import StepRecord
    from pipeline.train.model import Policy
    from pipeline.train.step import Stepper
    from pipeline.train.team import alone

    with TemporaryDirectory() as scratch:
        spec = train_spec(places, cell, 1, scratch, max_grad_norm=1e9)
        config, algorithm = TrainConfig.model_validate(spec["train"]), resolve("dapo", {})
        parent = load_artifact(places["checkpoint"])
        snapshot = open_snapshot(Path(scratch), [Part.opened(part) for part in spec["parts"]], algorithm, parent.id)
        policy = Policy(parent.path, cell.dtype, trust_remote_code=False)
        feed = Feed(snapshot, config, 0, policy.cost_model(), alone(), whole_step=False)
        stepper = Stepper(policy, algorithm, config, 1, alone(), lambda step: RATE)
        found, _ = stepper.gradient(next(feed.steps(0)), StepRecord(snapshot.has_behavior, 0))
        return found.loss, {name: of for name, p in policy.parameters.items() if (of := p.grad) is not None}


@dataclass(frozen=True)
class PaddedBatch:
    """A padded batch."""

    ids: Tensor
    """[rows, length]: prompt, completion, padding."""
    first: int
    """Position of the first logits that are needed, in any row."""
    mask: Tensor
    """[rows, length - 1 - first]: whether the logits there predict a completion token."""
    stored: Tensor
    advantage: Tensor


def padded_batches(rows: pl.DataFrame, entries: int) -> Iterator[PaddedBatch]:
    """Rows of like length together, within the budgets of tokens and logits."""
    both = length("prompt_token_ids") + length("completion_token_ids")
    items = rows.with_columns(length=both).sort("length", descending=True).to_dicts()
    batch: list[dict[str, Any]] = []
    for item in [*items, None]:
        if item is not None:
            more = [*batch, item]
            longest, shortest = more[0]["length"], min(len(one["prompt_token_ids"]) for one in more)
            if len(more) * longest <= TOKENS_PER_PASS and len(more) * (longest - shortest) * entries <= LOGITS_PER_PASS:
                batch = more
                continue
        yield _padded(batch)
        batch = [item] if item is not None else []


def _padded(batch: list[dict[str, Any]]) -> PaddedBatch:
    longest = max(one["length"] for one in batch)
    first = min(len(one["prompt_token_ids"]) for one in batch) - 1
    ids = np.zeros((len(batch), longest), np.int64)
    mask = np.zeros((len(batch), longest), np.bool_)
    stored_logprobs = np.zeros((len(batch), longest), np.float32)
    for row, one in enumerate(batch):
        start = len(one["prompt_token_ids"])
        ids[row, :start] = one["prompt_token_ids"]
        ids[row, start : one["length"]] = one["completion_token_ids"]
        mask[row, start : one["length"]] = True
        stored_logprobs[row, start : one["length"]] = one["behavior_logprobs"]
    advantage = torch.tensor([one["advantage"] for one in batch])[:, None]
    tensors = (torch.from_numpy(array[:, first + 1 :]) for array in (mask, stored_logprobs))
    return PaddedBatch(torch.from_numpy(ids).to(DEVICE), first, *(tensor.to(DEVICE) for tensor in (*tensors, advantage)))


def padded_backward(model: Any, rows: pl.DataFrame, cell: Cell) -> float:
    """Add a step's gradient. Returns its loss."""
    total, tokens = 0.0, int(rows.select(length("completion_token_ids").sum()).item())
    for batch in padded_batches(rows, VOCABULARIES[cell.vocabulary]):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=cell.dtype == "bfloat16"):
            kept = batch.ids.shape[1] - batch.first
            logits = model(input_ids=batch.ids, use_cache=False, logits_to_keep=kept).logits
        targets = batch.ids[:, batch.first + 1 :]
        logprobs = logits[:, :-1].float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        ratio = (logprobs - batch.stored).where(batch.mask, 0.0).exp()
        gain = torch.minimum(ratio * batch.advantage, ratio.clamp(1 - LOW, 1 + HIGH) * batch.advantage)
        loss = -gain.where(batch.mask, 0.0).sum() / tokens
        loss.backward()
        total += float(loss.detach())
    return total


def padded(places: Places, cell: Cell, steps: int) -> Timed:
    """The plain loop."""
    memory, timed = Memory(), Timed()
    model, rows = load(places), stored(Path(places["rollouts"]), Path(places["shaped"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=0.0, fused=True)
    for step in range(steps + 1):
        started, cpu = time.perf_counter(), time.process_time()
        padded_backward(model, rows, cell)
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        wait()
        if step == 0:
            memory.reset()
        else:
            timed.seconds.append(time.perf_counter() - started)
            timed.cpu_seconds.append(time.process_time() - cpu)
    timed.peak = memory.peak()
    return timed


def kept(places: Places, cell: Cell, steps: int) -> Timed:
    """The plain loop without page faults in every step."""
    from pipeline.train.memory import memory_kept

    with memory_kept():
        return padded(places, cell, steps)


def padded_gradient(places: Places, cell: Cell) -> tuple[float, dict[str, Tensor]]:
    model = load(places)
    loss = padded_backward(model, stored(Path(places["rollouts"]), Path(places["shaped"])), cell)
    return loss, gradients(model)


def trl(places: Places, cell: Cell, steps: int) -> Timed:
    """GRPOTrainer.train()."""
    from transformers import TrainerCallback

    memory, timed = Memory(), Timed()

    class Watch(TrainerCallback):
        started = cpu = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            wait()
            self.started, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            wait()
            if state.global_step == 1:
                memory.reset()
            else:
                timed.seconds.append(time.perf_counter() - self.started)
                timed.cpu_seconds.append(time.process_time() - self.cpu)

    trl_trainer(places, cell, steps + 1, MAX_NORM, Watch()).train()
    timed.peak = memory.peak()
    return timed


def trl_gradient(places: Places, cell: Cell, **settings: Any) -> tuple[float, dict[str, Tensor]]:
    from transformers import TrainerCallback

    found: dict[str, Tensor] = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
            found.update(gradients(model))

    trainer = trl_trainer(places, cell, 1, 0.0, Keep(), **settings)
    trainer.train()
    return trainer.loss_of_step, found


def trl_trainer(places: Places, cell: Cell, steps: int, max_norm: float, callback: Any, **settings: Any) -> Any:
    """GRPOTrainer whose completions are read instead of generated, laid out as it lays out its own.

    Args:
        settings: of GRPOConfig, in place of those here.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import pad

    rows = stored(Path(places["rollouts"]), Path(places["shaped"]))
    groups = rows.partition_by("group_id", maintain_order=True)
    longest = rows.select(pl.col("prompt_token_ids", "completion_token_ids").list.len().max()).sum_horizontal().item()
    shape = SHAPES[cell.shape]
    fitting = (n for n in range(shape.completions, 0, -1) if shape.completions % n == 0 and n * longest <= TOKENS_PER_PASS)
    per_pass = settings.pop("per_device_train_batch_size", None) or next(fitting)

    class Stored(GRPOTrainer):  # type: ignore[misc]
        loss_of_step = 0.0

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Tensor]:
            chosen = [groups[one["number"]] for one in inputs[:: shape.group]]
            table = pl.concat(chosen)

            def padded_column(name: str, kind: torch.dtype, side: str) -> Tensor:
                made: Tensor = pad([torch.tensor(v, dtype=kind) for v in table[name].to_list()], 0, side)
                return made.to(DEVICE)

            def mask(name: str, side: str) -> Tensor:
                made: Tensor = pad([torch.ones(n, dtype=torch.long) for n in table[name].list.len().to_list()], 0, side)
                return made.to(DEVICE)

            return {
                "prompt_ids": padded_column("prompt_token_ids", torch.long, "left"),
                "prompt_mask": mask("prompt_token_ids", "left"),
                "completion_ids": padded_column("completion_token_ids", torch.long, "right"),
                "completion_mask": mask("completion_token_ids", "right"),
                "old_per_token_logps": padded_column("behavior_logprobs", torch.float32, "right"),
                "advantages": torch.tensor(table["advantage"].to_list(), device=DEVICE),
                "num_items_in_batch": torch.tensor(int(table.select(length("completion_token_ids").sum()).item()), device=DEVICE),
            }

        def compute_loss(self, *given: Any, **named: Any) -> Any:
            loss = super().compute_loss(*given, **named)
            self.loss_of_step += float(loss.detach())
            return loss

    with TemporaryDirectory() as place:
        args = GRPOConfig(
            output_dir=place,
            max_steps=steps,
            per_device_train_batch_size=per_pass,
            gradient_accumulation_steps=shape.completions // per_pass,
            num_generations=shape.group,
            max_completion_length=1024,
            loss_type="dapo",
            epsilon=LOW,
            epsilon_high=HIGH,
            beta=0.0,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            weight_decay=0.0,
            max_grad_norm=max_norm,
            optim="adamw_torch_fused",
            bf16=cell.dtype == "bfloat16",
            use_cpu=DEVICE == "cpu",
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            **{"gradient_checkpointing": False, "temperature": 1.0, **settings},
        )
        dataset = Dataset.from_list([{"prompt": "<eos>", "number": number} for number in range(len(groups))])
        tokenizer = AutoTokenizer.from_pretrained(places["checkpoint"])

        def reward(completions: list[Any], **_: Any) -> list[float]:
            return [0.0] * len(completions)

        return Stored(load(places), reward, args, dataset, processing_class=tokenizer, callbacks=[callback])


def load(places: Places) -> Any:
    """The model in fp32, on the device."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(places["checkpoint"], dtype=torch.float32, attn_implementation="sdpa")
    return model.to(DEVICE).train()


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def wait() -> None:
    """Until the GPU has done what it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


TIMERS: dict[str, Callable[[Places, Cell, int], Timed]] = {"rollbook": rollbook, "padded": padded, "kept": kept, "trl": trl}
CHECKS: dict[str, Callable[[Places, Cell], tuple[float, dict[str, Tensor]]]] = {
    "rollbook": rollbook_gradient,
    "padded": padded_gradient,
    "kept": padded_gradient,
    "trl": trl_gradient,
}
