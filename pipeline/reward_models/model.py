"""A language model with a head of one output, read at the last token."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.sources.models import model_files
from pipeline.sources.tokenizer import encode, load_tokenizer

HEAD = "score"
"""What transformers calls the head of causal models for sequence classification."""


class ScalarModel:
    """Weights in fp32; on a GPU with bfloat16 passes are computed in it, and scores in fp32."""

    def __init__(self, path: Path, dtype: str, seed: int, *, trust_remote_code: bool) -> None:
        """Put a new head on a language model.

        Raises:
            UserError: transformers has no such model for sequence classification, or one whose head is another.
        """
        from transformers import AutoModelForSequenceClassification

        self._path, self._tokenizer = path, load_tokenizer(path, trust_remote_code=trust_remote_code)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(
                path, num_labels=1, dtype=torch.float32, trust_remote_code=trust_remote_code, use_safetensors=True
            )
        except (ValueError, OSError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"model.path: {path}: transformers has no reward model of this kind: {reason}") from None
        head = getattr(self.model, HEAD, None)
        if not isinstance(head, torch.nn.Linear):
            raise UserError(f"model.path: {path}: its classifier is not one linear layer; name a causal model")
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            head.weight.copy_(torch.randn(head.weight.shape, generator=draw) / math.sqrt(head.in_features + 1))
        self.model.to(self.device)
        config = self.model.config
        limits = [getattr(config.get_text_config(), "max_position_embeddings", None), self._tokenizer.model_max_length]
        self.longest = min([limit for limit in limits if isinstance(limit, int) and limit > 0], default=1 << 30)
        config.pad_token_id = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else 0
        self._half = dtype == "bfloat16"

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole texts, as the `reward_model` grader has them."""
        return encode(self._tokenizer, texts, special=True)

    def scores(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """The head's output at the last token of each: [texts]. They are padded on the right, where no causal model looks."""
        longest, pad = max(map(len, tokens)), self.model.config.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in tokens], device=self.device)
        last = torch.tensor([len(row) - 1 for row in tokens], device=self.device)
        mask = (torch.arange(longest, device=self.device) <= last[:, None]).long()
        with torch.autocast(self.device.type, torch.bfloat16) if self._half else nullcontext():
            hidden = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        found: Tensor = getattr(self.model, HEAD)(hidden[torch.arange(len(tokens)), last].float())[:, 0]
        return found

    def save(self, directory: Path) -> None:
        """Write the model as transformers and the `reward_model` grader read it, with the tokenizer's files as they were."""
        self.model.save_pretrained(directory)
        for name, file in model_files(self._path).items():
            if not name.endswith((".safetensors", ".safetensors.index.json")) and not (directory / name).exists():
                shutil.copyfile(file, directory / name)


def passes(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of items in passes of at most so many tokens, padding included; one that is longer has a pass of its own.

    >>> list(passes([3, 2, 4, 9], most=8))
    [[0, 1], [2], [3]]
    """
    part: list[int] = []
    longest = 0
    for number, length in enumerate(lengths):
        longest = max(longest, length)
        if part and longest * (len(part) + 1) > most:
            yield part
            part, longest = [], length
        part.append(number)
    if part:
        yield part
