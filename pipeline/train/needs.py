"""How much memory a training needs, and how many tokens one pass may have: plain arithmetic, without torch.

With W weights (T of them trained), one pass over n tokens needs, in fp32,

    process + 4 W + 4 T (gradients) + 8 T (AdamW's moments) + projection + n · a

where a token keeps a bytes for the backward pass, in each layer

    6 width + 2 (heads + kv heads) · head width + 4 · mlp width    numbers (two norms, q, k, v and what attention gives, gate,
                                                                    its activation, up and their product),

and with activation checkpointing only `width` numbers in each layer, beside all of one layer. In bf16 the model's copies and what
is kept take 2 bytes, the masters 4. The projection takes its weight's gradient twice over, two tiles, and the exponentials of as
many logits as it keeps. After the last step the model is loaded once more to be written: 4 W beside weights and moments.
Moments that are offloaded do not count.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.common.room import ADDRESS_SPACE
from pipeline.config.train import MOST_TOKENS, LoraConfig, TrainConfig
from pipeline.run.estimates import weights_in

WIDTHS = {"float32": 4, "bfloat16": 2}
PROCESS_BYTES = {"cpu": 550 << 20, "cuda": 900 << 20}
"""What a training process has before it has a model; on a GPU, its context there."""
KEPT_LOGITS_BYTES = {"cpu": 4 << 27, "cuda": 4 << 28}
"""Most that exponentials of logits take, as `head.KEPT_LOGITS` has it."""
TILES_BYTES = {"cpu": 2 * 4 * 1024 * 4096, "cuda": 2 * 4 * 4096 * 16384}
ALLOCATOR = {"cpu": 1.15, "cuda": 1.1}
"""What memory that is kept from pass to pass takes for a byte that is used: holes between tensors of other sizes."""
COMFORTABLE_BYTES = {"cpu": 1.6e9, "cuda": math.inf}
"""What activations get at most by themselves. On a CPU more tokens at once make nothing faster."""
COMFORTABLE_TOKENS = 512
"""As many as keep a processor busy, for models whose tokens take much."""
SPARE = 0.1
"""Share of what is free that is left free."""
Kind = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Numbers that a model's memory follows from."""

    weights: int
    """Tied ones once."""
    trained: int
    vocabulary: int
    width: int
    layers: int
    kept: int
    """Numbers that one token keeps for the backward pass, without checkpointing, over all layers."""

    def per_token(self, dtype: str, *, checkpointing: bool) -> float:
        """Bytes of activations that a token adds to a pass."""
        numbers = self.layers * self.width + 1.5 * self.kept / self.layers if checkpointing else self.kept
        return numbers * WIDTHS[dtype]


@dataclass(frozen=True, kw_only=True)
class TrainingFit:
    """How a training is cut so that it fits, and what it then needs."""

    tokens: int
    """Of one pass."""
    checkpointing: bool
    offload: bool = False
    """Whether AdamW's moments lie elsewhere."""
    bytes: int
    """At most, of one process; on a GPU, of its memory."""
    free: int
    """What was free when it was chosen, this process's own memory included."""
    limited_by: str
    fits: bool = True

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tokens", "checkpointing", "offload", "bytes", "free", "limited_by")}


def size_of(settings: Mapping[str, Any], weights: int, lora: LoraConfig | None = None) -> ModelSize | None:
    """A model's size by its config.json; None if that lacks what is needed.

    Args:
        settings: of config.json, or of its text_config.
        weights: how many it has.

    >>> llama = {"hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536, "vocab_size": 49152}
    >>> llama |= {"num_attention_heads": 9, "num_key_value_heads": 3}
    >>> size_of(llama, 134_515_008).kept
    334080
    """
    text = settings.get("text_config", settings)
    try:
        width, layers, vocabulary, heads = (
            int(text[name] if name in text else text[other])
            for name, other in (
                ("hidden_size", "n_embd"),
                ("num_hidden_layers", "n_layer"),
                ("vocab_size", "vocab_size"),
                ("num_attention_heads", "n_head"),
            )
        )
    except (KeyError, TypeError, ValueError):
        return None
    key_heads = text.get("num_key_value_heads") or heads
    head_width = text.get("head_dim") or width // heads
    inner = text.get("moe_intermediate_size") or text.get("intermediate_size") or 4 * width
    experts = (text.get("num_experts_per_tok") or 1) if text.get("moe_intermediate_size") else 1
    kept = layers * (6 * width + 2 * (heads + key_heads) * head_width + 4 * inner * experts)
    trained = weights
    if lora:  # A and B of every linear layer
        trained = layers * lora.rank * (4 * width + 2 * (heads + key_heads) * head_width + 3 * (width + inner))
    return ModelSize(weights=weights, trained=trained, vocabulary=vocabulary, width=width, layers=layers, kept=kept)


def size_in(files: Mapping[str, Path], lora: LoraConfig | None = None) -> ModelSize | None:
    """The size of a model by its files' headers, without reading the weights."""
    weights = sum(weights_in(path) for name, path in files.items() if name.endswith(".safetensors"))
    return size_of(json.loads(files["config.json"].read_text(encoding="utf-8")), weights, lora)


def fixed_bytes(size: ModelSize, dtype: str, kind: Kind, ranks: int = 1, *, offload: bool = False) -> int:
    """What a training needs whatever a pass is, but for the exponentials of logits."""
    copies = 0 if dtype == "float32" else WIDTHS[dtype] * size.trained
    frozen = WIDTHS[dtype] * (size.weights - size.trained)
    head = 4 * size.vocabulary * size.width
    spread = (8 if offload else 16) * size.trained + copies + frozen
    return int(PROCESS_BYTES[kind] + spread / ranks + 2 * head + TILES_BYTES[kind])


def pass_bytes(size: ModelSize, dtype: str, kind: Kind, tokens: int, *, checkpointing: bool) -> int:
    """What a pass over so many tokens needs beside that."""
    logits = min(KEPT_LOGITS_BYTES[kind], 4 * tokens * size.vocabulary)
    return int(logits + ALLOCATOR[kind] * tokens * size.per_token(dtype, checkpointing=checkpointing))


def training_need(
    size: ModelSize, dtype: str, kind: Kind, tokens: int, *, checkpointing: bool, ranks: int = 1, offload: bool = False
) -> int:
    """Most that one process of a training has at once: in a pass, or when the checkpoint is written."""
    working = fixed_bytes(size, dtype, kind, ranks, offload=offload)
    working += pass_bytes(size, dtype, kind, tokens, checkpointing=checkpointing)
    moments = 0 if offload else 8
    writing = PROCESS_BYTES[kind] + (4 + moments) * size.trained // ranks + 4 * size.weights if kind == "cpu" else 0
    return max(working, writing)


def room_for_moments(kind: Kind, limited_by: str, host: int, disk: int) -> int:
    """Bytes that moments can be offloaded to: of the host for a GPU's training, of the disk for a CPU's.

    Args:
        host: bytes free there.
        disk: likewise.
    """
    if kind == "cuda":
        return host
    return 0 if limited_by == ADDRESS_SPACE else disk  # a mapped file takes as many addresses as memory would


def choose(
    size: ModelSize, config: TrainConfig, dtype: str, kind: Kind, free: int, limited_by: str, *, longest: int, beside: int = 0
) -> TrainingFit:
    """How many tokens a pass gets, whether activations are recomputed, and whether AdamW's moments are offloaded.

    Both follow from the settings where these say it; else as many tokens as are worth their memory, and less where less is free.
    Activations are recomputed if nothing else fits, then moments are offloaded.

    Args:
        free: bytes that a process of this training may have in all.
        longest: tokens of the longest prompt with its completion; a pass has at least these.
        beside: bytes that this process can offload moments to.
    """
    wanted, asked = config.tokens_per_micro_batch, config.activation_checkpointing
    found = None
    may = 8 * size.trained / config.processes <= beside
    moved = ((False, True) if may else (False,)) if config.offload_optimizer == "auto" else (config.offload_optimizer,)
    for offload, checkpointing in itertools.product(moved, (False, True) if asked == "auto" else (asked,)):
        spare = SPARE if wanted == "auto" else 0  # who names a number may know better
        tokens = _affordable(size, config, dtype, kind, free, checkpointing, longest, offload) if wanted == "auto" else wanted
        in_step = tokens if config.batch_tokens else config.batch_completions * longest  # no pass has more
        most = max(longest, min(tokens, in_step))
        need = training_need(size, dtype, kind, most, checkpointing=checkpointing, ranks=config.processes, offload=offload)
        fits = need <= free * (1 - spare)
        how: dict[str, Any] = {"tokens": tokens, "checkpointing": checkpointing, "offload": offload}
        found = TrainingFit(**how, bytes=need, free=free, limited_by=limited_by, fits=fits)
        if fits:
            break
    assert found is not None
    return found


def _affordable(
    size: ModelSize, config: TrainConfig, dtype: str, kind: Kind, free: int, checkpointing: bool, longest: int, offload: bool
) -> int:
    """Tokens of a pass, a round number of them."""
    each = ALLOCATOR[kind] * size.per_token(dtype, checkpointing=checkpointing)
    comfortable = max(COMFORTABLE_TOKENS, COMFORTABLE_BYTES[kind] / each)
    room = free * (1 - SPARE) - fixed_bytes(size, dtype, kind, config.processes, offload=offload)
    by_memory = max(room / (each + 4 * size.vocabulary), (room - KEPT_LOGITS_BYTES[kind]) / each)
    return max(longest, rounded(min(MOST_TOKENS, comfortable, by_memory)))


def scoring_tokens(size: ModelSize, config: TrainConfig, dtype: str, free: float, longest: int) -> int:
    """Tokens of a pass that only scores: no activations stay, so a layer's decide.

    Args:
        free: bytes that the process may have in all.
    """
    if config.tokens_per_micro_batch != "auto":
        return config.tokens_per_micro_batch
    return max(longest, rounded(min(config.pass_tokens, free / 4 / _of_a_layer(size, dtype))))


def scoring_need(size: ModelSize, config: TrainConfig, dtype: str, kind: Kind, free: float, longest: int) -> int:
    """Most that one process has at once which scores: while the model is loaded, in fp32, or in a pass."""
    tokens = scoring_tokens(size, config, dtype, free, longest)
    weights = (4 + (0 if dtype == "float32" else WIDTHS[dtype])) * size.weights / config.processes
    working = TILES_BYTES[kind] + ALLOCATOR[kind] * tokens * _of_a_layer(size, dtype)
    return int(PROCESS_BYTES[kind] + weights + working)


def _of_a_layer(size: ModelSize, dtype: str) -> float:
    """Bytes that a token takes while a layer is computed and nothing is kept."""
    return 2 * size.kept / size.layers * WIDTHS[dtype]


def rounded(tokens: float) -> int:
    """Down to a number with three leading bits, so that a little more or less memory chooses the same.

    >>> [rounded(tokens) for tokens in (16384, 1300, 1100, 1024, 15, -1)]
    [16384, 1280, 1024, 1024, 14, 1]
    """
    if tokens < 4:
        return max(1, int(tokens))
    step = 1 << int(tokens).bit_length() - 3
    return int(tokens) // step * step


def refusal(fit: TrainingFit, size: ModelSize, config: TrainConfig, dtype: str, kind: Kind, longest: int) -> str:
    """What is needed, what is there, and which settings would fit."""
    ways = []
    if not fit.checkpointing and config.activation_checkpointing is False:
        ways.append("train.activation_checkpointing: auto recomputes activations")
    if not fit.offload and config.offload_optimizer is False:
        ways.append("train.offload_optimizer: auto keeps AdamW's moments elsewhere")
    if config.tokens_per_micro_batch != "auto" and config.tokens_per_micro_batch > longest:
        ways.append("train.tokens_per_micro_batch: auto makes passes smaller")
    if config.lora is None:
        adapters = LoraConfig()
        small = training_need(_with_lora(size, adapters), dtype, kind, longest, checkpointing=True, ranks=config.processes)
        if small <= fit.free * (1 - SPARE):
            ways.append(f"train.lora: {{rank: {adapters.rank}}} needs about {readable_gb(small)}")
    if kind == "cuda" and dtype == "float32":
        ways.append("model.dtype: bfloat16 halves what activations take")
    shortest = fit.tokens <= longest
    if shortest and longest > COMFORTABLE_TOKENS:
        ways.append(f"a shorter generate.max_tokens (a pass has to hold the longest prompt and completion, {longest:,} tokens)")
    ways.append("a smaller model")
    means = [how for how, on in (("activations recomputed", fit.checkpointing), ("AdamW's moments offloaded", fit.offload)) if on]
    spare = ", of which a tenth stays free" if fit.bytes <= fit.free else ""
    return (
        f"training does not fit: it needs about {readable_gb(fit.bytes)} even with {fit.tokens:,} tokens a pass"
        f"{''.join(f' and {how}' for how in means)}, and {readable_gb(fit.free)} is there, {fit.limited_by}"
        f"{spare}. What would fit: {'; '.join(ways)}"
    )


def _with_lora(size: ModelSize, lora: LoraConfig) -> ModelSize:
    return replace(size, trained=lora.rank * size.kept)


def readable_gb(size: float) -> str:
    """
    >>> readable_gb(4_360_000_000), readable_gb(160_000_000)
    ('4.4 GB', '0.16 GB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e9:.2g} GB"
