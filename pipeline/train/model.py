"""The policy: a model loaded, adapted and spread over ranks, and the logprobs it gives on packed rows."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pipeline.common.errors import UserError
from pipeline.config.train import LoraConfig
from pipeline.train import segments
from pipeline.train.adapters import add_adapters
from pipeline.train.attention import BLOCK, IMPLEMENTATIONS, Kind, Own, Wanted, block_mask, choose, dense_mask
from pipeline.train.batch import Batch, Cut
from pipeline.train.family import changes_with_length, forget_lengths, is_capped
from pipeline.train.head import tokens_of_chunk
from pipeline.train.logits import CappedProjection, capped_logprobs, logit_map
from pipeline.train.logprobs import Projection, linear_logprobs
from pipeline.train.plan import CostModel
from pipeline.train.team import Team, alone
from pipeline.train.weights import Masters, buffers_of, dtype_of_files, hold_own_rows, layers_of, shard

FORK = 16
"""Positions that a fork outside of a small subtree has to spare on a CPU, where every layer calls attention once for it."""


class CompilerError(UserError):
    """torch cannot compile anything here."""


class Policy:
    """A causal language model that is trained, or that scores."""

    def __init__(
        self,
        path: Path,
        dtype: str,
        *,
        trust_remote_code: bool,
        trains: bool = True,
        activation_checkpointing: bool = False,
        attention: Wanted = "auto",
        compiled: bool = False,
        lora: LoraConfig | None = None,
        seed: int = 0,
        team: Team | None = None,
    ) -> None:
        """Load a checkpoint.

        Args:
            dtype: what the model computes in, float32 or bfloat16; masters are fp32 either way.
            trains: whether there will be gradients. Without, there are no masters.
            seed: what adapters are drawn from.
            team: ranks that hold the model together. Default: this process.

        Raises:
            UserError: transformers cannot load it as a causal language model, or adapters do not fit it.
        """
        team = team or alone()
        self.device, self.dtype, self._trains = team.device, dtype, trains
        model = (load_model if team.size == 1 else load_for_rank)(path, trust_remote_code=trust_remote_code)
        model.config.use_cache = False
        model.requires_grad_(trains)
        model.eval()
        # No dropout: logprobs must be those of the distribution that generates. Checkpointing works in train mode only.
        _turn_dropout_off(model)
        self.logit_map = logit_map(model)
        if team.size > 1 and lora:  # adapters take their type from the weights that they are put beside
            hold_own_rows(model, "float32", team)
        self.adapters = add_adapters(model, lora, seed) if lora else None
        model.eval()
        if activation_checkpointing:
            _checkpoint(model)
        self._changes_with_length = changes_with_length(model)
        layers = layers_of(model)
        self.compiled = compiled
        if compiled:
            _compile(layers or [_body(model)])
        self.model: Any = model
        self._root = _Root(model)
        if team.size > 1:
            hold_own_rows(model, dtype, team)
            shard(self._root, layers, dtype, team)
        else:
            model.to(self.device)
        self.masters = Masters(model, dtype, copied=team.size == 1 and dtype != "float32")
        self.attention: Kind = "sdpa"
        self.own: Own = "sdpa"
        with suppress(ValueError):  # `make_ready` finds what works
            self.use_attention(choose(attention, self.device))

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """fp32 masters of the trained weights by name; tied ones once. Of each, a rank holds its own rows."""
        return self.masters()

    def use_attention(self, kind: Kind, own: Own = "eager") -> None:
        """Choose how attention is computed.

        Args:
            own: what rows of one completion run on. A model that has no choice keeps what it has.

        Raises:
            ValueError: transformers says that the model cannot do that.
        """
        segments.register()
        self.attention, self.own = kind, own
        self.model.set_attn_implementation(IMPLEMENTATIONS.get(kind, own))

    def recompute_activations(self) -> None:
        """Keep no activations within layers from now on."""
        _checkpoint(self.model)

    def cost_model(self) -> CostModel:
        """All but attention costs 2 n per weight for n tokens.

        A dense mask makes attention cost about 4 n^2 width per layer, masked parts included; the others pay for what is seen.
        """
        if self.attention in ("segments", "flex"):
            return CostModel(fork=FORK, free_forks=segments.SMALL) if self.attention == "segments" else CostModel()
        text = self.model.config.get_text_config()
        weights = sum(p.numel() for name, p in self.model.named_parameters() if "embed" not in name and "lm_head" not in name)
        scale = max(1.0, weights / (2 * text.hidden_size * text.num_hidden_layers))
        alone = self.attention == "alone"
        return CostModel(attention_scale=scale, shares=not alone, mixes_lengths=not (alone and self._changes_with_length))

    def logprobs(self, batch: Batch) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """log pi and entropy of every completion token, each at its own temperature; fp32, without gradient.

        With several ranks, all of them must call it, each with rows of its own.
        """

        def work(model: Any) -> tuple[Tensor, Tensor]:
            head, cut = model.get_output_embeddings(), self._laid_out(batch).cut(sys.maxsize)
            heat = cut.temperature / self.logit_map.scale
            given = self._hidden(model, batch, cut), head.weight, head.bias, cut.following, heat
            return linear_logprobs(*given) if self.logit_map.cap is None else capped_logprobs(*given, self.logit_map)

        with torch.no_grad():
            logprobs, entropy = self._run(work)
        return logprobs, entropy

    def hidden(self, batch: Batch, cut: Cut) -> Float[Tensor, "prefixes width"]:
        """The hidden states that predict a batch's completion tokens, with the model's graph.

        With several ranks, all of them must call it, each with rows of its own, and carry a gradient back.
        """
        found: Tensor = self._run(lambda model: self._hidden(model, batch, cut))
        return found

    def cut(self, batch: Batch) -> Cut:
        """Cuts of a batch's completions; the vocabulary projection and the loss run over one after the other."""
        return self._laid_out(batch).cut(tokens_of_chunk(len(self.model.get_output_embeddings().weight), self.device))

    def projection(self, hidden: Float[Tensor, "prefixes width"], cut: Cut) -> Projection | CappedProjection:
        """The vocabulary projection of a batch's hidden states.

        Between `hidden` and the backward pass, FSDP leaves the root's weights, the head's among them, gathered.
        """
        head = self.model.get_output_embeddings()
        given = hidden.detach(), head.weight, head.bias, cut.following, cut.temperature / self.logit_map.scale
        return Projection(*given, cut.longest) if self.logit_map.cap is None else CappedProjection(*given, self.logit_map)

    def _run(self, work: Callable[[nn.Module], Any]) -> Any:
        """Work with the gathered weights.

        Without a gradient, FSDP leaves the root's gathered: they would be taken for the masters, and again after these have
        changed.
        """
        found = _with_compiler(self._root, work) if self.compiled else self._root(work)
        if isinstance(self._root, FSDPModule) and self._trains and not torch.is_grad_enabled():
            self._root.reshard()
        return found

    def _hidden(self, model: Any, batch: Batch, cut: Cut) -> Float[Tensor, "prefixes width"]:
        batch = self._laid_out(batch)
        given: dict[str, Any] = {"input_ids": batch.input_ids}
        if self.attention == "alone":  # Padding lies behind what is read, and nothing looks ahead.
            forget_lengths(model)
        else:
            masks: dict[Kind, Callable[[Tensor], Any]] = {"flex": block_mask, "segments": segments.table, "sdpa": dense_mask}
            given |= {"position_ids": batch.position_ids, "attention_mask": masks[self.attention](batch.end)}
        every: Tensor = _body(model)(**given, use_cache=False).last_hidden_state
        return every.flatten(0, 1).index_select(0, cut.places)

    def _laid_out(self, batch: Batch) -> Batch:
        if self.attention in ("sdpa", "alone"):
            return batch
        return batch.in_line(BLOCK if self.attention == "flex" else 1)

    def logits(self, ids: Tensor) -> Tensor:
        """The model's own logits on one sequence, through its own code and its own mask; fp32.

        By the attention that it is defined by, eager. In bf16 by sdpa where that is the same: it rounds less.

        Args:
            ids: [length].
        """
        kind, own = self.attention, self.own
        try:
            self._use_own()
            forget_lengths(self.model)
            found: Tensor = self._run(lambda model: model(input_ids=ids[None], use_cache=False).logits[0].float())
        finally:
            with suppress(ValueError):
                self.use_attention(kind, own)
        return found

    def _use_own(self) -> None:
        if self.dtype != "float32" and not is_capped(self.model):
            with suppress(ValueError):
                return self.use_attention("alone", "sdpa")
        self.use_attention("alone", "eager")


class _Root(nn.Module):
    """What FSDP gathers weights around: what reads weights runs inside its forward, or between that and the backward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[nn.Module], Any]) -> Any:
        return work(self.model)


def _body(model: Any) -> Any:
    """A model without its head."""
    return model.base_model if model.base_model is not model else model.model


def load_for_rank(path: Path, *, trust_remote_code: bool) -> Any:
    """A checkpoint as its files have it, if that is exact: the files are mapped, so what is not read takes no memory.

    Only weights are in the files' type; buffers are those of the model in fp32.

    Raises:
        UserError: as `load_model`.
    """
    dtype = dtype_of_files(path)
    if dtype in (None, torch.float32):
        return load_model(path, trust_remote_code=trust_remote_code)
    model = load_model(path, trust_remote_code=trust_remote_code, dtype=dtype)
    stored, exact = set(model.state_dict()), None
    for name, buffer in model.named_buffers():
        if buffer.dtype == dtype:
            exact = exact or buffers_of(model.config, trust_remote_code=trust_remote_code)
            buffer.data = buffer.float() if name in stored else exact[name]
    return model


def load_model(path: Path, *, trust_remote_code: bool, dtype: torch.dtype = torch.float32) -> Any:
    """A checkpoint in fp32 on the CPU, or in another type.

    Raises:
        UserError: transformers cannot load it as a causal language model, or weights are missing.
    """
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM
    try:
        model, found = load.from_pretrained(
            path,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise UserError(f"{path}: transformers cannot load this model: {' '.join(str(error).split())[:300]}") from None
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise UserError(
            f"{path}: its files hold no {', '.join(missing[:4])}{more}, which {type(model).__name__} needs; transformers would "
            "draw them at random. Restore the files, or mend config.json"
        )
    return model


def _compile(layers: list[nn.Module]) -> None:
    """Compile modules in place, for rows of any length.

    On a CPU the environment of stages turns compilers off: `compile` would then silently do nothing.
    """
    import torch._dynamo

    os.environ.pop("TORCHDYNAMO_DISABLE", None)
    torch._dynamo.config.disable = False
    for layer in layers:
        layer.compile(dynamic=True)


def _with_compiler(root: nn.Module, work: Callable[[nn.Module], Any]) -> Any:
    """
    Raises:
        CompilerError: layers are compiled when they are first called, and here they cannot be.
    """
    from torch._dynamo.exc import BackendCompilerFailed

    try:
        return root(work)
    except BackendCompilerFailed as error:
        raise CompilerError(
            f"train.compile: torch cannot compile the model here: {str(error).strip().splitlines()[0][:300]}. Install what it "
            "asks for (on a CPU g++, or another compiler named by CXX), or leave `compile` out"
        ) from None


def _checkpoint(model: Any) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()


def _turn_dropout_off(model: nn.Module) -> None:
    """Some models have dropout layers, others hand a rate of their own (`attention_dropout`) to a function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
