"""How completions are drawn, and by what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from pipeline.config.base import Model
from pipeline.config.engine_args import refused
from pipeline.config.server import ServerConfig

LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 0.01, 2.0
"""Of vLLM's sampling, but for greedy."""


class EngineConfig(Model):
    max_model_len: int | None = Field(default=None, ge=8)
    """Longest prompt plus completion, in tokens. Default: what the model allows."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of GPU memory that vLLM may take."""
    kv_cache_mib: int = Field(default=512, ge=16)
    """Size of the key/value cache on a CPU, MiB. On a GPU the memory share above decides."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Sequences that the engine runs at once."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that one engine is split over."""
    replicas: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Engines on this machine, each in a process of its own with GPUs, or a share of the cores, of its own. auto: as many as
    the visible GPUs hold; on a CPU one."""
    enforce_eager: bool | None = None
    """Run without compilation and CUDA graphs. Default: true on a CPU, false on a GPU."""
    args: dict[str, JsonValue] = {}
    """Further settings of vLLM by its own names, such as {kv_cache_dtype: fp8, max_num_batched_tokens: 16384}. See
    docs/engines.md for those that are refused."""
    server: ServerConfig | None = None
    """Running vLLM servers that generate in place of an engine of the run's own: an address, a list of them, or the section
    below. Of the settings above, only max_model_len means anything then. See docs/generation-server.md."""

    @model_validator(mode="after")
    def _args_that_vllm_may_have(self) -> EngineConfig:
        if (why := refused(self.args)) is not None:
            raise ValueError(f"args: {why}")
        stages = self.args.get("pipeline_parallel_size", 1)
        if not isinstance(stages, int) or stages < 1:
            raise ValueError("args: pipeline_parallel_size: expected a whole number of at least 1")
        if self.args and self.server:
            raise ValueError("args: are those of the run's own engines; servers are started with theirs")
        return self

    @property
    def gpus(self) -> int:
        """Of one engine."""
        stages = self.args.get("pipeline_parallel_size", 1)
        assert isinstance(stages, int)
        return self.tensor_parallel_size * stages


class SamplingConfig(Model):
    temperature: float = Field(default=1.0, ge=0, le=LARGEST_TEMPERATURE)
    """0 is greedy. The recorded logprobs are those after the temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus share. Below 1 the support is cut, and methods that need a ratio refuse the rollouts."""
    top_k: int = Field(default=0, ge=0)
    """Keep the k likeliest tokens; 0 keeps all. As top_p, it cuts the support."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Drop tokens below this share of the likeliest one; 0 keeps all. As top_p, it cuts the support."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest completion, in tokens. A completion that reaches it is kept with status 'truncated'."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a completion. The tokens that spelled them stay in the rollout."""
    keep_stop_text: bool = False
    """Graders see, and rows keep, a completion's text with the stop text that ended it: for patterns that need it."""

    @field_validator("temperature")
    @classmethod
    def _drawn_at_it(cls, temperature: float) -> float:
        """The engine takes the least for what lies between, and the rows would tell another temperature than that."""
        if 0 < temperature < LEAST_TEMPERATURE:
            raise ValueError(f"vLLM draws at {LEAST_TEMPERATURE:g} or above; expected that, or 0 for greedy")
        return temperature

    @property
    def cuts_support(self) -> bool:
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


class MixtureConfig(Model):
    with_: str = Field(alias="with", min_length=1)
    """The other model: reference (of the iteration, as `reference` says), behavior (the policy of the iteration before, which
    drew what this one was trained on), or a path or hub name of a model with the same tokens."""
    share: float = Field(default=0.125, ge=-1, le=1)
    """beta of pi' = pi^(1-beta) other^beta, normalized after every prefix. 0 is the policy, 1 the other model; below 0, away from
    it, to -1 at most: pi^2 / other."""


class GenerateConfig(SamplingConfig):
    prompts: int = Field(default=128, ge=1)
    """Training prompts per iteration, drawn without replacement until every prompt was used once."""
    samples: int = Field(default=8, ge=1, le=1_000_000)
    """Completions per prompt: the size of a group."""
    shard_groups: int = Field(default=64, ge=1)
    """Groups per Parquet file: what a crash can cost, and what is held in memory."""
    mixture: MixtureConfig | None = None
    """A model that training completions are drawn by beside the policy, token by token. See docs/mixtures.md."""
