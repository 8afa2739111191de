"""One YAML file describes a run. Validated here in milliseconds: this module imports neither torch nor vLLM.

Unknown keys are refused with the nearest valid name; `--set train.epochs=4` overrides any of them.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import UserError


class Model(BaseModel):
    """Base of every section: unknown keys and infinite numbers are errors, values do not change after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class ModelConfig(Model):
    path: str = Field(min_length=1)
    """Hugging Face model directory, or a hub name such as Qwen/Qwen2.5-1.5B-Instruct."""
    revision: str | None = None
    """Hub revision. Without one, the hub's current default is resolved once and its hash recorded."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of engine and trainer. auto: bfloat16 on a GPU that has it, float32 elsewhere."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Only for models whose code you have read."""


class PromptSource(Model):
    path: str = Field(min_length=1)
    """A .parquet or .jsonl file, a directory written by `datasets.save_to_disk`, or a hub dataset name."""
    split: str | None = None
    """Split of a Hugging Face dataset."""
    subset: str | None = None
    """Configuration name of a hub dataset (GSM8K has main and socratic)."""
    revision: str | None = None
    """Hub revision of the dataset."""
    question: str = "question"
    """Column that holds the question."""
    answer: str = "answer"
    """Column that holds the reference answer."""
    prompt_id: str | None = None
    """Column that holds a unique id. Without one, the id is a hash of the question."""
    answer_pattern: str | None = None
    """Regular expression whose first group is the answer, for columns that hold a worked solution (GSM8K: '#### (.+)$')."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows."""


class DataConfig(Model):
    train: PromptSource
    """Prompts that rollouts are generated for."""
    heldout: PromptSource
    """Prompts that checkpoints are judged by."""
    allow_overlap: bool = False
    """Accept held-out questions that are also trained on."""
    template: str = "{question}"
    """Text given to the model; {question} is replaced. With chat: true it is the user's message."""
    chat: bool = False
    """Render with the tokenizer's chat template and ask for the assistant's turn."""
    system: str | None = None
    """System message, with chat: true."""


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
    enforce_eager: bool | None = None
    """Run without compilation and CUDA graphs. Default: true on a CPU, false on a GPU."""


class SamplingConfig(Model):
    temperature: float = Field(default=1.0, ge=0)
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

    @property
    def cuts_support(self) -> bool:
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


class GenerateConfig(SamplingConfig):
    prompts: int = Field(default=128, ge=1)
    """Training prompts per iteration, drawn without replacement until every prompt was used once."""
    samples: int = Field(default=8, ge=1)
    """Completions per prompt: the size of a group."""
    shard_groups: int = Field(default=64, ge=1)
    """Groups per Parquet file: what a crash can cost, and what is held in memory."""


class RewardComponent(Model):
    grader: str
    """exact_match, regex, math_verify, reasoning_gym, or your own function as 'package.module:function'."""
    name: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_]*$")
    """Column name: the score is kept as reward_<name>. Default: the grader's name."""
    weight: float = Field(default=1.0, allow_inf_nan=True)  # refused with the graders, by the component's name
    """Factor in the total reward."""
    args: dict[str, Any] = {}
    """Keyword arguments of the grader."""

    @field_validator("args")
    @classmethod
    def _args_are_json(cls, args: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(args, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"only what JSON can hold (write a date in quotes): {error}") from None
        return args

    @property
    def column(self) -> str:
        return "reward_" + (self.name or self.grader.rpartition(":")[2].rpartition(".")[2])


class RewardConfig(Model):
    components: tuple[RewardComponent, ...] = Field(min_length=1)
    """Graders whose weighted scores add up to the reward."""
    timeout_seconds: float = Field(default=10.0, gt=0)
    """Time limit for grading one completion; beyond it the row's status is 'reward_error'."""
    workers: int = Field(default=1, ge=1)
    """Processes that grade while the engine goes on."""
    memory_mib: int = Field(default=4096, ge=64)
    """Address space that a worker may take before it is stopped."""
    max_failed_share: float = Field(default=0.2, ge=0, le=1)
    """Largest share of rollouts whose reward may fail before the run stops."""

    @model_validator(mode="after")
    def _names_differ(self) -> RewardConfig:
        columns = [component.column for component in self.components]
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise ValueError(f"two components write {', '.join(twice)}; give one of them another `name`")
        return self


class ShapeConfig(Model):
    zero_variance: Literal["keep", "drop"] = "keep"
    """Groups whose rewards are all equal. Methods with a group baseline get no gradient from them either way."""
    truncated: Literal["keep", "drop", "zero_reward"] = "keep"
    """Completions cut at max_tokens. drop leaves them out of training but not out of their group's statistics."""
    reward_error: Literal["drop", "zero_reward"] = "drop"
    """Completions that could not be graded. drop leaves them out of their group's statistics too."""
    min_group: int = Field(default=1, ge=1)
    """Groups with fewer usable completions are dropped."""


class TrainConfig(Model):
    algorithm: str = "rec-oneside-nois"
    """Name of an algorithm; `rollbook algorithms` lists them."""
    algorithm_args: dict[str, Any] = {}
    """Settings of that algorithm, such as {low: 0.2, high: 0.2}."""
    epochs: int = Field(default=4, ge=1)
    """Passes over the frozen snapshot."""
    batch_completions: int = Field(default=256, ge=1)
    """Completions per optimizer step; whole groups are taken until this many are reached."""
    tokens_per_micro_batch: int = Field(default=16384, ge=16)
    """Token budget of one forward and backward pass. Changes speed and memory, never the result beyond rounding."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's moment decays."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises from 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    save_every_steps: int = Field(default=50, ge=1)
    """Optimizer steps between resume points."""
    max_logprob_difference: float = Field(default=0.05, gt=0)
    """Largest mean |trainer - stored| logprob per token, nats, before the first step. Above it the run refuses to train."""
    check_logprobs: bool = True
    """Measure that difference. Off only for imported rollouts whose logprobs are known to be from elsewhere."""


class EvaluateConfig(Model):
    samples: int = Field(default=8, ge=1)
    """Sampled completions per held-out prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the sampled completions."""
    greedy: bool = True
    """Also answer each held-out prompt once at temperature 0."""
    k: tuple[int, ...] = (1,)
    """pass@k is reported for these k; each at most `samples`."""
    solved_at: float = 1.0
    """A completion with at least this reward counts as solved."""
    bootstrap: int = Field(default=1000, ge=100)
    """Resamples of the held-out prompts behind each interval."""

    @model_validator(mode="after")
    def _k_fits(self) -> EvaluateConfig:
        if too_large := [k for k in self.k if not 1 <= k <= self.samples]:
            raise ValueError(f"k={too_large[0]} needs between 1 and samples={self.samples} completions per prompt")
        return self


class RunConfig(Model):
    """A whole run: what `rollbook run CONFIG` reads."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run."""
    run_dir: str | None = None
    """Where the run lies. Default: runs/<name>."""
    store: str | None = None
    """Where artifacts lie; runs that share a store share finished work. Default: the run directory's own."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Every random choice follows from it."""
    iterations: int = Field(default=1, ge=1)
    """Rounds of generate, shape, train, evaluate."""
    model: ModelConfig
    """The base model."""
    data: DataConfig
    """Prompts, and how they are put to the model."""
    engine: EngineConfig = EngineConfig()
    """What vLLM may use."""
    generate: GenerateConfig = GenerateConfig()
    """Rollouts: how many, and how they are sampled."""
    reward: RewardConfig
    """How completions are graded."""
    shape: ShapeConfig = ShapeConfig()
    """Which rollouts are trained on."""
    train: TrainConfig = TrainConfig()
    """The algorithm and its optimiser."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How checkpoints are judged."""

    @property
    def directory(self) -> Path:
        return Path(self.run_dir or f"runs/{self.name}")

    @property
    def store_url(self) -> str:
        return self.store or str(self.directory / "artifacts")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and validate a run's YAML file.

    Args:
        path: the file. Relative paths in it are relative to the working directory.
        overrides: `key.path=value` texts; the value is YAML.

    Raises:
        UserError: no such file, not YAML, an unknown key (with the nearest valid name) or a value out of range.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        tree = _parse(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping such as `name: demo`, found {type(tree).__name__}")
    return _validated(tree, overrides, str(path))


def change_config(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The same run with some settings changed, as by `load_config`.

    Raises:
        UserError: an unknown key or a value out of range.
    """
    return _validated(config.model_dump(mode="json"), overrides, "--set")


def _validated(tree: dict[str, Any], overrides: Sequence[str], origin: str) -> RunConfig:
    for override in overrides:
        _apply(tree, override)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{origin}:\n" + "\n".join(f"  {line}" for line in describe_errors(error, RunConfig))) from None


class _Loader(yaml.SafeLoader):
    """Plain YAML: 1e-4 is a number, as in YAML 1.2, and a key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))


def _parse(text: str) -> Any:
    return yaml.load(text, _Loader)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: expected key=value, such as --set train.epochs=4")
    *parents, last = key.strip().split(".")
    node = tree
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        child = node[parent]
        if not isinstance(child, dict):
            raise UserError(f"--set {override}: {parent} is not a section")
        node = child
    try:
        node[last] = _parse(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"--set {override}: the value is not valid YAML: {' '.join(str(error).split())}") from None


def describe_errors(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per problem: where, what, and the nearest valid key for an unknown one."""
    lines = []
    places = [problem["loc"] for problem in error.errors()]
    for problem in error.errors():
        if problem["type"] == "too_short" and any(place[: len(problem["loc"])] == problem["loc"] != place for place in places):
            continue  # items that are wrong themselves are not counted
        where = ".".join(str(part) for part in problem["loc"]) or "config"
        if problem["type"] == "extra_forbidden":
            *parents, key = problem["loc"]
            names = _keys_at(model, parents)
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"valid keys: {', '.join(names)}"
            lines.append(f"{where}: unknown key; {hint}")
        elif problem["type"] == "missing":
            lines.append(f"{where}: missing, and it has no default")
        elif problem["type"] == "model_type":
            lines.append(f"{where}: expected a section of settings, found {problem['input']!r}")
        else:
            found = problem.get("input")
            shown = "" if isinstance(found, dict) else f" (found {found!r})"
            if isinstance(found, dict) and problem["type"] == "string_type":
                shown = ", found a mapping: a text with a colon or with braces needs quotes"
            lines.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    return lines


def _keys_at(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Valid keys of the section that `path` leads to."""
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part))
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return sorted(model.model_fields)
