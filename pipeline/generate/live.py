"""One engine for many checkpoints: later ones of the same architecture only replace its weights, after which it is checked.

Some vLLM builds keep packed copies of the weights on a CPU that a reload does not reach: it reports success and goes on with
the old ones. So a reloaded engine must reproduce the new checkpoint's logprobs as transformers computes them. Reloaded
engines that pass gave the same bits as fresh ones wherever this was measured (vLLM 0.32, CPU, fp32).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.device import has_gpu
from pipeline.config.engine import EngineConfig, SamplingConfig
from pipeline.generate.engine import CompletionRequest, Engine, reason_of
from pipeline.run.process import NeedsFreshProcess, Reporter
from pipeline.store import Artifact

TOLERANCE = 1e-4
"""Largest |engine - transformers| logprob of a probe, nats, in fp32: rounding is below 2e-5."""
PROBE_TOKENS = 32
"""Longest answer to a probe."""


@dataclass(frozen=True)
class _Fit:
    """What an engine was started for; weights alone may change."""

    config: EngineConfig
    dtype: str
    trust_remote_code: bool
    files: tuple[tuple[str, str], ...]
    """Name and sha256 of the model's files other than weights: configuration, tokenizer, code."""


class LiveEngine:
    """The engine of a process, if it has one yet."""

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}
        self._engine: Engine | None = None
        self._fit: _Fit | None = None
        self._policy: str | None = None

    def engine_for(
        self,
        policy: Artifact,
        config: EngineConfig,
        dtype: str,
        probes: Sequence[list[int]],
        reporter: Reporter,
        *,
        trust_remote_code: bool,
    ) -> Engine:
        """An engine with a checkpoint's weights.

        Args:
            probes: prompts that a reloaded engine answers for its check.

        Raises:
            UserError: vLLM does not support or cannot load the model.
            NeedsFreshProcess: the engine there is cannot take the checkpoint.
        """
        fit = _Fit(config, dtype, trust_remote_code, _files_of(policy))
        if self._engine is None:
            reporter.note("starting vLLM")
            self._engine = Engine(policy.path, config, dtype, trust_remote_code=trust_remote_code)
        elif fit != self._fit:
            raise NeedsFreshProcess("the engine was started for another model or with other settings")
        elif policy.id != self._policy:
            self._reload(self._engine, policy, dtype, probes, trust_remote_code=trust_remote_code)
        self._fit, self._policy = fit, policy.id
        self._engine.forget()
        return self._engine

    def _reload(
        self, engine: Engine, policy: Artifact, dtype: str, probes: Sequence[list[int]], *, trust_remote_code: bool
    ) -> None:
        if dtype != "float32" or has_gpu():
            raise NeedsFreshProcess(f"only fp32 on a CPU is exact enough to check a reload; this is {dtype}")
        try:
            engine.reload(policy.path)
            engine.forget()
            worst = _difference(engine, policy.path, probes, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise NeedsFreshProcess(f"vLLM cannot reload weights: {reason_of(error)}") from error
        if not worst <= TOLERANCE:
            raise NeedsFreshProcess(f"the reloaded engine's logprobs are {worst:.2g} nats from the checkpoint's")


def _files_of(policy: Artifact) -> tuple[tuple[str, str], ...]:
    files = policy.manifest.content.files
    weights = (".safetensors", ".safetensors.index.json")
    return tuple(sorted((file.path, file.sha256) for file in files if not file.table and not file.path.endswith(weights)))


def _difference(engine: Engine, model: Path, probes: Sequence[list[int]], *, trust_remote_code: bool) -> float:
    """Largest |engine - transformers| logprob over sampled answers to the probes, nats."""
    import torch

    from pipeline.generate.reference import reference_logprobs

    sampling = SamplingConfig(max_tokens=PROBE_TOKENS)
    asks = [CompletionRequest((-1, number, 0), prompt, sampling, seed=number) for number, prompt in enumerate(probes)]
    replies = [reply for step in engine.run(iter(asks), in_flight=len(asks)) for reply in step]
    if any(reply.error is not None or not reply.logprobs for reply in replies):
        return math.inf
    (reference,) = reference_logprobs(model, probes, replies, trust_remote_code=trust_remote_code)
    answers = torch.tensor([value for reply in replies for value in reply.logprobs])
    return float((torch.cat(reference) - answers).abs().max())
