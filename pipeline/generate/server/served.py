"""Is what a server holds the checkpoint, and are its logprobs those of the distribution that it draws from?

It answers a few prompts at temperature 2, and transformers says what the checkpoint's logprobs of these answers are, with and
without the temperature. Other weights agree with neither; a server in vLLM's default logprobs mode agrees with the wrong one.
In bfloat16 a small training step hides in the rounding, so there the server must also name the checkpoint.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.commands import VLLM_SERVER
from pipeline.common.errors import UserError
from pipeline.config.engine import SamplingConfig
from pipeline.generate.engine import CompletionRequest
from pipeline.generate.server.client import Client
from pipeline.generate.server.protocol import reply_of, request_of
from pipeline.store import Artifact
from pipeline.store.files import sha256_of

TEMPERATURE = 2.0
"""Far from 1, so that logprobs before and after it differ; high, so that unlikely tokens are looked at too."""
PROBE_TOKENS = 32
"""Longest answer to a probe."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Nats that a server's logprobs may lie from the checkpoint's: the largest difference in fp32 (rounding is below 1e-4), the
mean in bfloat16 (rounding is about 0.03)."""


class WrongModelServed(Exception):
    """A server that holds something else than the checkpoint; the message says what is known of it."""


@dataclass(frozen=True)
class Expected:
    """What servers must hold."""

    policy: Artifact
    dtype: str
    context: int
    probes: Sequence[list[int]]
    trust_remote_code: bool

    @property
    def command(self) -> str:
        """What starts such a server."""
        options = f"--served-model-name {name_of(self.policy)} --dtype {self.dtype} --max-model-len {self.context}"
        model = shlex.quote(str(self.policy.path.resolve()))
        return f"{VLLM_SERVER} --model {model} {options} --logprobs-mode processed_logprobs"


@dataclass(frozen=True)
class Served:
    """What a server says of itself."""

    model: str
    """The name that requests call it by."""
    root: str
    """Where it has its weights from."""
    max_model_len: int
    version: str

    @property
    def shown(self) -> str:
        return repr(self.root if self.root == self.model else f"{self.model} from {self.root}")


def name_of(policy: Artifact) -> str:
    """What a server may call a checkpoint, so that it is known wherever its files lie there."""
    return f"checkpoint-{policy.id[:12]}"


def look(client: Client, url: str) -> Served:
    """
    Raises:
        Refused, Unanswered: as `Client.ask`.
        UserError: it is no vLLM server.
    """
    cards = client.ask((url,), "/v1/models").get("data")
    found = [card for card in cards if isinstance(card, dict) and not card.get("parent")] if isinstance(cards, list) else []
    if not found or not isinstance(found[0].get("max_model_len"), int):
        raise UserError(f"{url}: /v1/models names no model with its max_model_len; is it a vLLM server?")
    version = client.ask((url,), "/version").get("version")
    card = found[0]
    return Served(str(card.get("id")), str(card.get("root")), card["max_model_len"], str(version))


def examine(client: Client, url: str, expected: Expected) -> Served:
    """What a server holds, if that is the checkpoint.

    Raises:
        WrongModelServed: it is another one.
        UserError: it gives logprobs of another distribution than it draws from, or answers nothing that can be used.
        Refused, Unanswered: as `Client.ask`.
    """
    served = look(client, url)
    if expected.dtype != "float32" and not _is_named(served, expected.policy):
        raise WrongModelServed(f"serves {served.shown}")
    processed, raw = _differences(client, url, served.model, expected)
    tolerance = TOLERANCE[expected.dtype]
    if processed <= tolerance:
        return served
    if raw <= tolerance:
        raise UserError(
            f"{url}: its logprobs are those before the temperature, not of the distribution that tokens are drawn from. "
            f"Start it with --logprobs-mode processed_logprobs:\n  {expected.command}"
        )
    raise WrongModelServed(
        f"serves {served.shown}, whose logprobs are {processed:.2g} nats from the checkpoint's in {expected.dtype}"
    )


def _is_named(served: Served, policy: Artifact) -> bool:
    """Whether a server's names are those of a checkpoint: its own, its directory's, or that of the model it was imported from."""
    if served.model == name_of(policy) or Path(served.root).name == policy.path.name:
        return True
    if served.root == policy.manifest.provenance.notes.get("imported_from") and not Path(served.root).is_dir():
        return True  # a hub name; its revision is for the logprobs to tell
    weights = {file.path: file.sha256 for file in policy.manifest.content.files if file.path.endswith(".safetensors")}
    there = {name: Path(served.root) / name for name in weights}
    return bool(there) and all(path.is_file() and sha256_of(path) == weights[name] for name, path in there.items())


def _differences(client: Client, url: str, model: str, expected: Expected) -> tuple[float, float]:
    """How far a server's logprobs are from the checkpoint's after and before the temperature, in nats."""
    import torch

    from pipeline.generate.reference import reference_logprobs

    sampling = SamplingConfig(temperature=TEMPERATURE, max_tokens=PROBE_TOKENS)
    replies = []
    for number, prompt in enumerate(expected.probes):
        ask = CompletionRequest((-1, number, 0), prompt, sampling, seed=number)
        most = min(PROBE_TOKENS, expected.context - len(prompt))
        replies.append(reply_of(ask, client.ask((url,), "/v1/completions", request_of(ask, model, most)), url, most))
    if broken := [reply.error for reply in replies if reply.error is not None]:
        raise UserError(f"{url}: a probe failed: {broken[0]}")
    vocabulary = _vocabulary(expected)
    if any(token >= vocabulary for reply in replies for token in reply.token_ids):
        raise WrongModelServed(f"serves a model of another vocabulary than the checkpoint's {vocabulary} tokens")
    found = reference_logprobs(
        expected.policy.path,
        expected.probes,
        replies,
        dtype=expected.dtype,
        temperatures=(TEMPERATURE, 1.0),
        trust_remote_code=expected.trust_remote_code,
    )
    answers = torch.tensor([value for reply in replies for value in reply.logprobs])
    processed, raw = ((torch.cat(values) - answers).abs() for values in found)
    if expected.dtype == "float32":
        return float(processed.max()), float(raw.max())
    return float(processed.mean()), float(raw.mean())


def _vocabulary(expected: Expected) -> int:
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(expected.policy.path, trust_remote_code=expected.trust_remote_code)
    return int(config.get_text_config().vocab_size)
