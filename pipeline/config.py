"""One YAML file describes a run. Validated here in milliseconds: this module imports neither torch nor vLLM.

Unknown keys are refused with the nearest valid name; `--set train.epochs=4` overrides any of them.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from pipeline.config_base import Model
from pipeline.config_data import ReplayConfig, ShapeConfig
from pipeline.config_server import ServerConfig
from pipeline.config_train import TrainConfig
from pipeline.errors import UserError
from pipeline.plain_yaml import parse_yaml

LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 0.01, 2.0
"""Of vLLM's sampling, but for greedy."""


class ModelConfig(Model):
    path: str = Field(min_length=1)
    """Hugging Face model directory, a checkpoint such as runs/a/artifacts/checkpoint/3f9c..., or a hub name such as
    Qwen/Qwen2.5-1.5B-Instruct."""
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
    bad_rows: Literal["refuse", "set_aside"] = "refuse"
    """Rows that do not fit. set_aside goes on without them and keeps them, with their reasons, beside the prompts."""


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
    """Render with the tokenizer's chat template and ask for the assistant's turn. Templates that write a date get 26 Jul 2024."""
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
    server: ServerConfig | None = None
    """Running vLLM servers that generate in place of an engine of the run's own: an address, a list of them, or the section
    below. Of the settings above, only max_model_len means anything then. See docs/generation-server.md."""


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


class GenerateConfig(SamplingConfig):
    prompts: int = Field(default=128, ge=1)
    """Training prompts per iteration, drawn without replacement until every prompt was used once."""
    samples: int = Field(default=8, ge=1, le=1_000_000)
    """Completions per prompt: the size of a group."""
    shard_groups: int = Field(default=64, ge=1)
    """Groups per Parquet file: what a crash can cost, and what is held in memory."""


class RewardComponent(Model):
    grader: str
    """exact_match, regex, math_verify, reasoning_gym, reward_model, judge, from_file, human (see grading.md), or your own
    function as 'package.module:function'."""
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
    """Processes that grade while the engine goes on. Reward models, judges and files have one each beside them."""
    memory_mib: int = Field(default=4096, ge=64)
    """Address space that a worker may take before it is stopped. Reward models, judges and files have no limit."""
    max_failed_share: float = Field(default=0.2, ge=0, le=1)
    """Largest share of rollouts whose reward may fail before the run stops."""

    @model_validator(mode="after")
    def _names_differ(self) -> RewardConfig:
        columns = [component.column for component in self.components]
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise ValueError(f"two components write {', '.join(twice)}; give one of them another `name`")
        return self


class EvaluateConfig(Model):
    samples: int = Field(default=8, ge=1, le=1_000_000)
    """Sampled completions per held-out prompt."""
    temperature: float = Field(default=1.0, ge=LEAST_TEMPERATURE, le=LARGEST_TEMPERATURE)
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


class StopConfig(Model):
    target_pass_at_1: float | None = Field(default=None, gt=0, le=1)
    """End once held-out pass@1 is this high."""
    patience: int | None = Field(default=None, ge=1)
    """End when pass@1 has not risen for this many iterations."""
    min_gain: float = Field(default=0.0, ge=0)
    """What counts as a rise, for `patience`."""
    max_drop: float | None = Field(default=None, gt=0, le=1)
    """End when pass@1 lies this far below the best so far."""
    min_entropy: float | None = Field(default=None, ge=0)
    """End when the trained policy's entropy falls below this, nats per token: it has collapsed."""
    max_entropy: float | None = Field(default=None, gt=0)
    """End when the entropy rises above this, nats per token."""
    max_kl: float | None = Field(default=None, gt=0)
    """End when training moves this far from the behavior policy, nats per token."""
    max_failed_rewards: float | None = Field(default=None, ge=0, le=1)
    """End when a larger share of an iteration's rewards failed."""
    max_tokens: int | None = Field(default=None, ge=1)
    """End once this many tokens were generated, held-out answers included."""


class RunConfig(Model):
    """A whole run: what `rollbook run CONFIG` reads."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run."""
    run_dir: str | None = None
    """Where the run lies. Default: runs/<name>."""
    store: str | None = None
    """Where artifacts lie: a directory, or s3://bucket/prefix. Runs that share one share finished work. Default: the run
    directory's own."""
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
    replay: ReplayConfig = ReplayConfig()
    """Rollouts of earlier iterations, or from elsewhere, that are trained on beside the new ones."""
    train: TrainConfig = TrainConfig()
    """The algorithm and its optimiser."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How checkpoints are judged."""
    stop: StopConfig = StopConfig()
    """When to end before the last iteration. Rules that are not set never do."""
    plugins: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Python files of your own with algorithms, such as my_algorithms.py. They are run: name only code you trust."""

    @property
    def directory(self) -> Path:
        return Path(os.path.expanduser(self.run_dir or f"runs/{self.name}"))

    @property
    def store_url(self) -> str:
        return os.path.expanduser(self.store or str(self.directory / "artifacts"))


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
        tree = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping such as `name: demo`, found {type(tree).__name__}")
    return _validated(tree, overrides, str(path))


def change_config(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The same run with some settings changed, as by `load_config`.

    Raises:
        UserError: an unknown key or a value out of range.
    """
    return _validated(config.model_dump(mode="json"), overrides, "--set")


def with_plugins(config: RunConfig, files: Sequence[str]) -> RunConfig:
    """The same run with more files of the user's own."""
    return config.model_copy(update={"plugins": tuple(dict.fromkeys((*config.plugins, *files)))})


def _validated(tree: dict[str, Any], overrides: Sequence[str], origin: str) -> RunConfig:
    for override in overrides:
        _apply(tree, override)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{origin}:\n" + "\n".join(f"  {line}" for line in describe_errors(error, RunConfig))) from None


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
        node[last] = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"--set {override}: the value is not valid YAML: {error}") from None


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
        elif problem["type"] == "tuple_type":
            lines.append(f"{where}: expected a list: [a, b], or a line with a dash for each item; found {problem['input']!r}")
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
