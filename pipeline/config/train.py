"""Settings of `train`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.base import Model

WORK_SETTINGS = frozenset(
    {
        *("tokens_per_micro_batch", "processes", "attention", "compile", "activation_checkpointing", "offload_optimizer"),
        "save_every_steps",
    }
)
"""How the work is done. They change the result by rounding at most, so they decide no key: work goes on under other ones."""
GUARDS = frozenset({"max_logprob_difference"})
"""What ends a training that should not be. They decide whether there is a result and nothing in it, so they decide no key.
(`check_logprobs` decides what the metrics hold.)"""

MOST_TOKENS = 16384
"""Most tokens of a pass that `auto` chooses."""


class LoraConfig(Model):
    rank: int = Field(default=16, ge=1)
    """Rows of A and columns of B."""
    alpha: int = Field(default=32, ge=1)
    """The adapter adds alpha/rank B A."""
    targets: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=("all-linear",), min_length=1)
    """Names of the modules that get one, such as [q_proj, v_proj]. all-linear: every linear layer but the output projection."""


class TrainConfig(Model):
    algorithm: str = "rec-oneside-nois"
    """Name of an algorithm; `rollbook algorithms` lists them."""
    algorithm_args: dict[str, Any] = {}
    """Settings of that algorithm, such as {low: 0.2, high: 0.2}."""
    epochs: int = Field(default=4, ge=1)
    """Passes over the frozen snapshot."""
    batch_completions: int = Field(default=256, ge=1)
    """Completions per optimizer step, in whole groups."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Completion tokens per optimizer step, in whole groups. If given, it decides instead of batch_completions."""
    denominator: Literal["all", "live"] = "all"
    """Which completions the loss is averaged over: all of a step, or those that have a gradient. Dead ones (advantage or weight
    0, nothing else read) are not computed either way."""
    tokens_per_micro_batch: Literal["auto"] | Annotated[int, Field(ge=16)] = "auto"
    """Token budget of one forward and backward pass. Changes speed and memory, never the result beyond rounding. auto: chosen
    before the first step, from the memory that is free and what the model needs."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's moment decays."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    optimizer_state: Literal["carry", "fresh"] = "carry"
    """carry: AdamW's moments, warm-up and schedule go on from iteration to iteration, as in one long training. fresh: each
    iteration starts them anew, as every training does that starts from an imported model, or with LoRA's new adapters."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up. Over the whole run, or with a fresh optimizer over each iteration."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises from 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    lora: LoraConfig | None = None
    """Train low-rank adapters beside frozen weights: {rank: 16, alpha: 32}. The checkpoint holds them, and the merged model."""
    processes: int = Field(default=1, ge=1)
    """Processes of this machine that train together; on GPUs, one each. Weights, gradients and optimizer are spread over them."""
    attention: Literal["auto", "segments", "flex", "sdpa", "alone"] = "auto"
    """segments: for CPUs, only what is seen is computed. flex: the same for GPUs, block by block. sdpa: a dense mask, everywhere.
    alone: every completion in a row of its own, by the model's own attention. auto: segments or flex; sdpa or alone where that
    does not work."""
    compile: bool = False
    """torch.compile the model's layers. The first step then takes longer, which counts as its time."""
    activation_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations in the backward pass: less memory, about a third more time. auto: if nothing else fits."""
    offload_optimizer: Literal["auto"] | bool = "auto"
    """Keep AdamW's moments in the host's memory, or where the CPU trains in a file on the disk: 8 bytes less for each trained
    weight, for the time of carrying them to and fro in every step. The weights are the same. auto: if nothing else fits."""
    save_every_steps: int = Field(default=50, ge=1)
    """Optimizer steps between resume points."""
    max_logprob_difference: float = Field(default=0.05, gt=0)
    """Largest mean |trainer - stored| logprob per token, nats, before the first step. Above it the run refuses to train."""
    check_logprobs: bool = True
    """Measure that difference. Off only for imported rollouts whose logprobs are known to be from elsewhere."""

    @property
    def pass_tokens(self) -> int:
        """Token budget of a pass; the most that `auto` chooses, where nothing was chosen."""
        return MOST_TOKENS if self.tokens_per_micro_batch == "auto" else self.tokens_per_micro_batch

    @property
    def carries(self) -> bool:
        """Whether moments go on. Adapters are new in every iteration, so under LoRA they do not."""
        return self.optimizer_state == "carry" and self.lora is None
