"""What a mixture's logprobs are, as transformers computes them: the judge of what was stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from pipeline.generate.mixture.logits import mixed_logits


def mixture_logprobs(rows: pl.DataFrame, policy: Path, other: Path, share: float, dtype: str) -> pl.DataFrame:
    """log π' of every completion token, π' ∝ π^(1 - share) · other^share over the vocabulary after each prefix, at the row's
    temperature.

    Args:
        rows: of a rollouts table.
        policy, other: directories of checkpoints.
        dtype: number format of the weights; mixtures are computed in fp32.

    Returns:
        group_id, sample_index and logprobs, in nats.
    """
    models = [_model(path, dtype) for path in (policy, other)]
    found = []
    with torch.inference_mode():
        for row in rows.select(*_KEY, "prompt_token_ids", "completion_token_ids", "temperature").iter_rows(named=True):
            ours, theirs = (_logits(model, row) for model in models)
            mixed = mixed_logits(ours, theirs, share) / row["temperature"]
            drawn = torch.tensor(row["completion_token_ids"])
            found.append(mixed.log_softmax(-1).gather(-1, drawn[:, None])[:, 0].tolist())
    return rows.select(_KEY).with_columns(logprobs=pl.Series(found, dtype=pl.List(pl.Float32)))


_KEY = ["group_id", "sample_index"]


def _model(path: Path, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    return model.eval()


def _logits(model: Any, row: dict[str, Any]) -> Tensor:
    """Before each completion token: [completion, vocabulary]."""
    prompt, completion = row["prompt_token_ids"], row["completion_token_ids"]
    logits: Tensor = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits
