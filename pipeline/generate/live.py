"""Engines for many checkpoints: later ones of the same architecture only replace their weights, after which they are checked.

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

from pipeline.common.device import has_gpu, visible_gpus
from pipeline.config.cluster import ClusterConfig
from pipeline.config.engine import EngineConfig, SamplingConfig
from pipeline.generate.engine import CompletionRequest, Reply, reason_of
from pipeline.generate.engines.devices import refuse_args
from pipeline.generate.engines.fleet import Fleet
from pipeline.generate.engines.hands import Hands, ThisMachine, spare
from pipeline.generate.mixture.folder import MixedWith
from pipeline.run.child import Child
from pipeline.run.process import NeedsFreshProcess, Reporter
from pipeline.store import Artifact

TOLERANCE = 1e-4
"""Largest |engine - transformers| logprob of a probe, nats, in fp32: rounding is below 2e-5."""
PROBE_TOKENS = 32
"""Longest answer to a probe."""


@dataclass(frozen=True)
class _Fit:
    """What engines were started for; weights alone may change."""

    config: EngineConfig
    cluster: ClusterConfig | None
    dtype: str
    trust_remote_code: bool
    files: tuple[tuple[str, str], ...]
    """Name and sha256 of the model's files other than weights: configuration, tokenizer, code."""
    mixed: MixedWith | None


class LiveEngine:
    """The engines of a stage's process, if it has some yet."""

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}
        self._fleet: Fleet | None = None
        self._fit: _Fit | None = None
        self._policy: str | None = None
        self._spare: Child | None = None

    def warm_up(self) -> None:
        """Have an engine's process load its libraries, unless each engine will have GPUs of its own."""
        if len(visible_gpus()) <= 1:
            self._spare = spare()

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
    ) -> Fleet:
        """Engines with a checkpoint's weights.

        Args:
            probes: prompts that reloaded engines answer for their check.
            mixed: the model that it is mixed with, token by token.
            cluster: machines that work in place of this one.

        Raises:
            UserError: vLLM does not support or cannot load the model, or there are not as many devices.
            StageFailed: an engine died.
            NeedsFreshProcess: the engines there are cannot take the checkpoint.
        """
        refuse_args(config)
        self.notes = {"engine_args": dict(config.args)} if config.args else {}
        fit = _Fit(config, cluster, dtype, trust_remote_code, _files_of(policy), mixed)
        if self._fleet is None:
            reporter.note("starting vLLM")
            self._fleet = Fleet(
                policy.path,
                config,
                dtype,
                trust_remote_code=trust_remote_code,
                reporter=reporter,
                hands=self._hands(config, cluster),
                mixed=mixed,
            )
        elif fit != self._fit:
            raise NeedsFreshProcess("the engine was started for another model or with other settings")
        elif policy.id != self._policy:
            if mixed:
                raise NeedsFreshProcess("the check of a reload knows models that are alone")
            self._reload(self._fleet, policy, dtype, probes, trust_remote_code=trust_remote_code)
        self._fit, self._policy = fit, policy.id
        self._fleet.begin(reporter)
        return self._fleet

    def _hands(self, config: EngineConfig, cluster: ClusterConfig | None) -> Hands:
        early, self._spare = self._spare, None
        if cluster is None:
            return ThisMachine(config, early)
        if early:
            early.end()
        from pipeline.generate.cluster.far import Far

        return Far(config, cluster)

    def rest(self) -> None:
        """On a GPU or a cluster, engines end: the next stage, or others, have all of their memory."""
        if self._fleet and self._fit and (has_gpu() or self._fit.cluster):
            self._fleet.end()
            self._fleet = None

    def _reload(
        self, fleet: Fleet, policy: Artifact, dtype: str, probes: Sequence[list[int]], *, trust_remote_code: bool
    ) -> None:
        if dtype != "float32" or has_gpu():
            raise NeedsFreshProcess(f"only fp32 on a CPU is exact enough to check a reload; this is {dtype}")
        try:
            fleet.reload(policy.path)
            worst = _difference(fleet, policy.path, probes, trust_remote_code=trust_remote_code)
        except Exception as error:
            raise NeedsFreshProcess(f"vLLM cannot reload weights: {reason_of(error)}") from error
        if not worst <= TOLERANCE:
            raise NeedsFreshProcess(f"the reloaded engine's logprobs are {worst:.2g} nats from the checkpoint's")


def _files_of(policy: Artifact) -> tuple[tuple[str, str], ...]:
    files = policy.manifest.content.files
    weights = (".safetensors", ".safetensors.index.json")
    return tuple(sorted((file.path, file.sha256) for file in files if not file.table and not file.path.endswith(weights)))


def _difference(fleet: Fleet, model: Path, probes: Sequence[list[int]], *, trust_remote_code: bool) -> float:
    """Largest |engine - transformers| logprob over every engine's sampled answers to the probes, nats."""
    sampling = SamplingConfig(max_tokens=PROBE_TOKENS)
    asks = [CompletionRequest((-1, number, 0), prompt, sampling, seed=number) for number, prompt in enumerate(probes)]
    return max(_error(replies, model, probes, trust_remote_code) for replies in fleet.answers_of_each(asks))


def _error(replies: list[Reply], model: Path, probes: Sequence[list[int]], trust_remote_code: bool) -> float:
    import torch

    from pipeline.generate.reference import reference_logprobs

    if any(reply.error is not None or not reply.logprobs for reply in replies):
        return math.inf
    (reference,) = reference_logprobs(model, probes, replies, trust_remote_code=trust_remote_code)
    answers = torch.tensor([value for reply in replies for value in reply.logprobs])
    return float((torch.cat(reference) - answers).abs().max())
