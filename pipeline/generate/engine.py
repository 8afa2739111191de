"""vLLM's offline engine: token ids in, token ids and behavior logprobs out, finished completions as they come."""

from __future__ import annotations

import math
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.common.device import has_gpu
from pipeline.common.errors import StageFailed, UserError
from pipeline.common.room import address_space_limit
from pipeline.config.cluster import ClusterConfig
from pipeline.config.engine import EngineConfig, SamplingConfig
from pipeline.generate.mixture.folder import ARCHITECTURE, MixedWith, mixture_folder
from pipeline.sources.layers import kinds_with_state
from pipeline.sources.tokenizer import for_engine

if TYPE_CHECKING:
    from vllm import RequestOutput

    from pipeline.run.process import Reporter
    from pipeline.store import Artifact


def engine_environment() -> dict[str, str]:
    """Variables that must be set before vLLM is imported.

    On a CPU: one process, no core binding, idle OpenMP threads sleep instead of spinning (on a shared core spinning costs
    several times the run time), and no compilation (it pays only for long runs).
    """
    common = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if address_space_limit() is not None:
        common["MALLOC_ARENA_MAX"] = "2"  # else glibc sets 64 MiB of addresses aside for each of dozens of threads
    if has_gpu():
        return common
    return common | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "PASSIVE", "TORCHDYNAMO_DISABLE": "1"}


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One completion to generate."""

    key: tuple[int, int, int]
    """Job, group and sample: how the caller knows it again."""
    prompt_token_ids: list[int]
    sampling: SamplingConfig
    seed: int


@dataclass(frozen=True, slots=True)
class EpisodeTurn:
    """One turn, as a row of `schemas.Turns` has it."""

    start: int
    length: int
    who: str
    name: str | None = None
    reward: float | None = None
    status: str = "ok"


@dataclass(frozen=True, slots=True)
class Episode:
    """What makes a completion one of several turns."""

    mask: tuple[bool, ...]
    """Of each token, whether the policy drew it."""
    turns: tuple[EpisodeTurn, ...]
    error: str | None = None
    """Why the environment could not go on."""

    @property
    def reward(self) -> float | None:
        """The sum of what the environment gave; None if it gave nothing."""
        given = [turn.reward for turn in self.turns if turn.reward is not None]
        return math.fsum(given) if given else None


@dataclass(frozen=True, slots=True)
class Reply:
    """One finished completion."""

    key: tuple[int, int, int]
    token_ids: list[int]
    logprobs: list[float]
    """Of the sampled tokens, after temperature and cuts; 0 of those that an environment added."""
    finish_reason: str | None
    text: str | None
    """As it is stored, or the engine's own up to the stop text that ended it; None: the tokens say it all."""
    error: str | None
    stopped_by: str | None = None
    """The stop text that ended it."""
    episode: Episode | None = None
    """Its turns, if an environment took part."""
    earlier: tuple[Reply, ...] = ()
    """Rows of the same episode before this one, where each turn is a row."""

    @property
    def rows(self) -> tuple[Reply, ...]:
        """It and what is earlier, in their order."""
        return (*self.earlier, self)


class AnyEngine(Protocol):
    """What generates: engines of this machine, or servers."""

    name: str
    """What is recorded with every row."""

    def run(self, asks: Iterator[Sequence[CompletionRequest]], in_flight: int) -> Iterator[Sequence[Reply]]:
        """Generate completions, and yield them as they finish, in any order.

        Args:
            asks: requests of one group together; an empty one says that there is nothing now, and may be later: see `wake`.
        """

    def wake(self) -> None:
        """There may be more requests now. From any thread."""

    @property
    def tokens(self) -> list[int]:
        """What each of several has generated of this work; empty if that is not known."""


class EngineSource(Protocol):
    """Where the generate stage gets what generates."""

    notes: dict[str, Any]
    """What is kept beside an artifact about who answered."""

    def engine_for(
        self,
        policy: Artifact,
        config: EngineConfig,
        dtype: str,
        probes: Sequence[list[int]],
        reporter: Reporter,
        *,
        trust_remote_code: bool,
        mixed: MixedWith | None,
        cluster: ClusterConfig | None,
    ) -> AnyEngine:
        """What generates with a checkpoint's weights.

        Args:
            mixed: the model that it is mixed with, token by token.
            cluster: machines that work in place of this one.
        """

    def rest(self) -> None:
        """The work is done: give back what the next stage needs."""


class Engine:
    """A vLLM engine, with the weights of one checkpoint at a time."""

    def __init__(
        self, model: Path, config: EngineConfig, dtype: str, *, trust_remote_code: bool, mixed: MixedWith | None = None
    ) -> None:
        """Load a checkpoint, and the one that it is mixed with.

        Raises:
            UserError: vLLM does not support or cannot load the model.
        """
        from vllm import LLM

        on_gpu = has_gpu()
        self._scratch = tempfile.TemporaryDirectory(prefix="rollbook-")
        settings: dict[str, Any] = {
            "model": str(_mixture(model, mixed, Path(self._scratch.name)) if mixed else model),
            "tokenizer": str(for_engine(model, Path(self._scratch.name), trust_remote_code=trust_remote_code)),
            "load_format": "safetensors",
            "dtype": dtype,
            "seed": 0,
            "max_model_len": config.max_model_len,
            "max_num_seqs": config.max_num_seqs,
            "tensor_parallel_size": config.tensor_parallel_size,
            "logprobs_mode": "processed_logprobs",
            "enforce_eager": (not on_gpu) if config.enforce_eager is None else config.enforce_eager,
            "trust_remote_code": trust_remote_code,
            "disable_log_stats": True,
        }
        if on_gpu:
            settings["gpu_memory_utilization"] = config.gpu_memory_utilization
        else:
            # Seeded requests crash when a prefill is split on a CPU (vLLM 0.32: "CPU Generator does not use offset").
            settings |= {"kv_cache_memory_bytes": config.kv_cache_mib << 20, "enable_chunked_prefill": False}
            if _carries_state(model, trust_remote_code=trust_remote_code):  # for these, caching prompts takes split prefills
                settings["enable_prefix_caching"] = False
        try:
            self._llm = LLM(**(settings | config.args))
        except Exception as error:
            given = f" with engine.args {', '.join(config.args)}" if config.args else ""
            raise UserError(f"vLLM cannot load {model}{given}: {reason_of(error)}") from error
        self._engine = self._llm.llm_engine
        self.name = engine_name(dtype) + (f", {mixed.words}" if mixed else "")
        self._model = model
        self._has_run = False
        self._waiting: dict[str, CompletionRequest] = {}

    def reload(self, model: Path) -> None:
        """Take the weights of another checkpoint of the same architecture.

        Whether they really arrived depends on vLLM and the device: `pipeline.generate.live` checks it.
        """
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(model)})
        self._model = model

    def forget(self) -> None:
        """Drop cached prompts, so that what is generated depends on nothing that was generated before."""
        self._llm.reset_prefix_cache()

    @property
    def is_busy(self) -> bool:
        """Whether requests wait for an answer."""
        return bool(self._waiting)

    def add(self, ask: CompletionRequest) -> Reply | None:
        """Queue one request. Returns a reply if the engine refuses it."""
        name = "-".join(map(str, ask.key))
        refused = self._add(name, ask)
        if refused is not None:
            return Reply(ask.key, [], [], None, None, refused)
        self._waiting[name] = ask
        return None

    def step(self) -> list[Reply]:
        """One step. Returns the completions that it finished.

        The order and the batch they are in depend on timing; the completions do not, each has a seed of its own.

        Raises:
            UserError: the first one fails: vLLM can load the model, but not run it.
            StageFailed: a later one fails.
        """
        finished = [output for output in self._step() if output.finished]
        return [_reply(self._waiting.pop(output.request_id), output) for output in finished]

    def _step(self) -> list[RequestOutput]:
        try:
            outputs: Any = self._engine.step()
        except Exception as error:
            traceback.print_exc()  # for the log
            if not self._has_run:
                raise UserError(f"vLLM loads {self._model}, but cannot run it: {reason_of(error)}") from error
            raise StageFailed(
                f"vLLM failed while it generated: {reason_of(error)}. Finished shards are kept; the same command goes on"
            ) from error
        self._has_run = True
        return list(outputs)

    def _add(self, name: str, ask: CompletionRequest) -> str | None:
        """Returns why the engine refused it, or None."""
        from vllm import SamplingParams, exceptions
        from vllm.sampling_params import RequestOutputKind

        sampling = ask.sampling
        refusal = getattr(exceptions, "VLLMClientError", ValueError)  # older versions raise ValueError itself
        try:
            params = SamplingParams(
                n=1,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                max_tokens=sampling.max_tokens,
                seed=ask.seed if sampling.temperature > 0 else None,
                stop=list(sampling.stop) or None,
                detokenize=bool(sampling.stop),
                logprobs=0,
                flat_logprobs=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._engine.add_request(name, {"prompt_token_ids": ask.prompt_token_ids}, params)
        except (refusal, ValueError, TypeError) as error:
            return reason_of(error)
        return None


def _mixture(model: Path, mixed: MixedWith, scratch: Path) -> Path:
    """What vLLM loads for a mixture; its class is made known here, since vLLM would look at it in a process of its own."""
    from vllm import ModelRegistry

    from pipeline.generate.mixture.model import MixtureModel

    ModelRegistry.register_model(ARCHITECTURE, MixtureModel)
    return mixture_folder(model, mixed, scratch / "mixture")


def _carries_state(model: Path, *, trust_remote_code: bool) -> bool:
    """Whether some of a model's layers carry a state along the text. False of what transformers does not know."""
    from transformers import AutoConfig

    try:
        return bool(kinds_with_state(AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)))
    except (ValueError, OSError, KeyError):
        return False


def _reply(ask: CompletionRequest, output: RequestOutput) -> Reply:
    completion = output.outputs[0]
    tokens = list(completion.token_ids)
    flat: Any = completion.logprobs
    logprobs: list[float] = []
    if flat is not None:
        first = flat.start_indices
        if [flat.token_ids[i] for i in first] != tokens:
            return Reply(ask.key, tokens, [], completion.finish_reason, None, "the engine's logprobs are of other tokens")
        logprobs = [min(flat.logprobs[i], 0.0) for i in first]
    stopped_by = completion.stop_reason if isinstance(completion.stop_reason, str) else None
    text = None if stopped_by is None else completion.text
    error = None
    if completion.finish_reason not in ("stop", "length"):
        error = f"the engine ended it with {completion.finish_reason!r}"
    return Reply(ask.key, tokens, logprobs, completion.finish_reason, text, error, stopped_by)


def reason_of(error: BaseException) -> str:
    """The innermost cause, on one line."""
    while (cause := error.__cause__) is not None:
        error = cause
    return " ".join(str(error).split())[:500] or type(error).__name__


def engine_name(dtype: str) -> str:
    """What is recorded with every row: program, version, device, number format."""
    import vllm

    device = "cuda" if has_gpu() else "cpu"
    return f"vllm {vllm.__version__} {device} {dtype}"
