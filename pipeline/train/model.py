"""The policy: loaded, run on packed rows, checked against the model's own logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.train.batch import Batch
from pipeline.train.logprobs import linear_logprobs
from pipeline.train.plan import CostModel

SELF_CHECK_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15}
"""Largest |packed - separate| logprob, nats, that the self-check accepts: far above rounding, far below a wrong mask."""


class Policy:
    """A causal language model with fp32 master weights; on bfloat16 the forward pass runs under autocast."""

    def __init__(self, path: Path, dtype: str, *, trust_remote_code: bool, activation_checkpointing: bool) -> None:
        """Load a checkpoint.

        Raises:
            UserError: transformers cannot load it as a causal language model.
        """
        from transformers import AutoModelForCausalLM

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=trust_remote_code
            )
        except (ValueError, OSError, KeyError) as error:
            raise UserError(f"{path}: transformers cannot load this model: {' '.join(str(error).split())[:300]}") from None
        model.config.use_cache = False
        if activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # No dropout: logprobs must be those of the distribution that generates. Checkpointing works in train mode only.
        model.train(activation_checkpointing)
        _turn_dropout_off(model)
        self.model: nn.Module = model.to(self.device)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name; tied ones once."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def cost_model(self) -> CostModel:
        """Attention of a row of n tokens costs about 4 n^2 width per layer (masked parts included), all else 2 n per weight."""
        config: Any = self.model.config
        text = config.get_text_config()
        weights = sum(p.numel() for name, p in self.parameters.items() if "embed" not in name and "lm_head" not in name)
        return CostModel(attention_scale=max(1.0, weights / (2 * text.hidden_size * text.num_hidden_layers)))

    def logprobs(self, batch: Batch) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """log pi and entropy of every completion token, each at its own temperature; fp32, with gradient."""
        model: Any = self.model
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            hidden = model.base_model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=batch.attends, use_cache=False
            ).last_hidden_state
            head = model.get_output_embeddings()
            picked = hidden.flatten(0, 1).index_select(0, batch.predicted_from)
            return linear_logprobs(picked, head.weight, head.bias, batch.flat.targets, batch.flat.temperature)

    def self_check(self, batch: Batch) -> None:
        """Compare packed logprobs of one row with the model's own logits on [prompt, completion] alone.

        Raises:
            UserError: they differ by more than rounding, as with a model whose attention ignores the mask it is given, or
                whose logits are more than a linear map of the last hidden state.
        """
        model: Any = self.model
        packed = self.logprobs(batch)[0]
        worst = 0.0
        for number in (0, len(batch.flat.completions) - 1):
            here = batch.flat.sequence == number
            row = int(batch.predicted_from[here][0]) // batch.input_ids.shape[1]
            prompt_end = int(batch.predicted_from[here][0]) % batch.input_ids.shape[1] + 1
            ids = torch.cat([batch.input_ids[row, :prompt_end], batch.flat.targets[here]])[None]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
                logits = model(input_ids=ids, use_cache=False).logits[0, prompt_end - 1 : -1].float()
            alone = (logits / batch.flat.temperature[here, None]).log_softmax(-1).gather(-1, batch.flat.targets[here, None])[:, 0]
            worst = max(worst, float((packed[here] - alone).abs().max()))
        if not worst <= SELF_CHECK_TOLERANCE[self.dtype]:
            raise UserError(
                f"{model.config.model_type}: packed rows give logprobs that differ by {worst:.3g} nats from the model's own. "
                "This architecture cannot be trained with prompts shared in a row yet"
            )


def _turn_dropout_off(model: nn.Module) -> None:
    """Some models have dropout layers, others hand a rate of their own (`attention_dropout`) to a function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
