"""What a checkpoint's logprobs are, as transformers computes them: the judge of engines and servers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.generate.engine import Reply


def reference_logprobs(
    model: Path,
    probes: Sequence[list[int]],
    replies: Sequence[Reply],
    *,
    dtype: str = "float32",
    temperatures: Sequence[float] = (1.0,),
    trust_remote_code: bool,
) -> list[list[torch.Tensor]]:
    """log softmax(logits / T) of every reply's tokens after its probe.

    Args:
        probes: prompts; a reply's group number says which it answers.
        dtype: number format of the weights; the softmax is in fp32.

    Returns:
        For each temperature a tensor per reply, of as many values as it has tokens, in nats.
    """
    from transformers import AutoModelForCausalLM

    reference: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code)
    found: list[list[torch.Tensor]] = [[] for _ in temperatures]
    with torch.inference_mode():
        for reply in replies:
            prompt, answer = probes[reply.key[1]], torch.tensor(reply.token_ids)
            logits = reference(input_ids=torch.tensor([prompt + reply.token_ids]), use_cache=False).logits
            of_answer = logits[0, len(prompt) - 1 : -1].float()
            for temperature, values in zip(temperatures, found, strict=True):
                values.append((of_answer / temperature).log_softmax(-1).gather(-1, answer[:, None])[:, 0])
    return found
