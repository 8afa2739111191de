"""A language model with a head of one output, read at the last token."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.reward_models.packing import Texts, TokenPair, Tokens, filled_up, in_passes
from pipeline.sources.models import model_files
from pipeline.sources.tokenizer import encode, load_tokenizer
from pipeline.train import segments
from pipeline.train.attention import BLOCK, IMPLEMENTATIONS, Kind, block_mask, choose
from pipeline.train.batch import collate
from pipeline.train.check import LARGEST_DIFFERENCE, MEAN_DIFFERENCE
from pipeline.train.family import changes_with_length, forget_lengths, is_capped, why_alone
from pipeline.train.model import FORK
from pipeline.train.plan import Packing

HEAD = "score"
"""What transformers calls the head of causal models for sequence classification."""
PROBES = 8
"""Most pairs that are computed in both ways before the first step."""


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
        self.attention: Kind = "alone"
        """Rows of trees on segments or flex, or texts alone: see `make_ready`."""
        self.packing = Packing()
        """Of all passes."""

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole texts, as the `reward_model` grader has them."""
        return encode(self._tokenizer, texts, special=True)

    def make_ready(self, pairs: Sequence[TokenPair], notify: Callable[[str], None]) -> None:
        """Compute texts in rows of trees if that gives the scores of each text alone; else each in a row of its own.

        Args:
            pairs: those of the data; some of them are tried.
            notify: told why texts are computed one by one.
        """
        longest = max(len(text) for pair in pairs for text in pair)
        segments.register()
        if reason := why_alone(self.model, longest):
            return self._take("alone", notify, reason)
        sample = [pairs[number] for number in range(0, len(pairs), -(-len(pairs) // PROBES))]
        try:
            self._take("alone", notify)
            with torch.inference_mode():
                expected = torch.cat([self._one_by_one([text]) for pair in sample for text in pair]).view(-1, 2)
                self._take(choose("auto", self.device), notify)
                off = float((self.scores(sample) - expected).abs().max())
            if off <= (LARGEST_DIFFERENCE if not self._half else MEAN_DIFFERENCE):
                return None
            why = f"it is {off:.3g} off"
        except Exception as error:  # whatever a model's own code does with a mask that it does not know
            why = " ".join(str(error).split())[:200]
        return self._take("alone", notify, f"texts that share rows do not work here ({why})")

    def _take(self, kind: Kind, notify: Callable[[str], None], reason: str | None = None) -> None:
        self.attention = kind
        own = "eager" if is_capped(self.model) else "sdpa"
        self.model.set_attn_implementation(IMPLEMENTATIONS.get(kind, own))
        if reason:
            notify(f"{self.model.config.model_type}: {reason}; every text is computed in a row of its own")

    def passes(self, pairs: Sequence[TokenPair], most: int) -> Iterator[list[int]]:
        """Numbers of pairs that are computed together.

        Args:
            most: positions of a pass; a pair that has more goes alone.
        """
        if self.attention == "alone":
            return filled_up([2 * max(map(len, pair)) for pair in pairs], most)
        return in_passes(pairs, most)

    def scores(self, pairs: Sequence[TokenPair]) -> Float[Tensor, "pairs 2"]:
        """The head's output at the last token of each text."""
        texts = [text for pair in pairs for text in pair]
        if self.attention == "alone":
            return self._one_by_one(texts).view(-1, 2)
        on_cpu = self.attention == "segments"
        packed = Texts.of(texts, *((FORK, segments.SMALL) if on_cpu else ()))
        batch = collate([packed.row], self.device).in_line(1 if on_cpu else BLOCK)
        mask = segments.table(batch.end) if on_cpu else block_mask(batch.end)
        self.packing += Packing(
            passes=1, tokens=packed.row.length, laid_out=batch.end.numel(), unshared=sum(len(text) for text in texts)
        )
        hidden = self._hidden(batch.input_ids, attention_mask=mask, position_ids=batch.position_ids)
        at_ends = hidden.flatten(0, 1).index_select(0, batch.predicted_from)
        places = torch.tensor([packed.numbers[text] for text in texts], device=self.device)
        return self._head(at_ends).index_select(0, places).view(-1, 2)

    def _one_by_one(self, texts: Sequence[Tokens]) -> Float[Tensor, " texts"]:
        """Texts in rows of their own, filled up on the right, where no causal model looks."""
        forget_lengths(self.model)
        if len(texts) > 1 and changes_with_length(self.model):
            return torch.cat([self._one_by_one([text]) for text in texts])
        longest, pad = max(map(len, texts)), self.model.config.pad_token_id
        ids = torch.tensor([[*text, *[pad] * (longest - len(text))] for text in texts], device=self.device)
        last = torch.tensor([len(text) - 1 for text in texts], device=self.device)
        self.packing += Packing(
            passes=1, tokens=int(last.sum()) + len(texts), laid_out=ids.numel(), unshared=int(last.sum()) + len(texts)
        )
        hidden = self._hidden(ids, attention_mask=(torch.arange(longest, device=self.device) <= last[:, None]).long())
        return self._head(hidden[torch.arange(len(texts), device=self.device), last])

    def _hidden(self, ids: Tensor, **given: Any) -> Float[Tensor, "rows length width"]:
        with torch.autocast(self.device.type, torch.bfloat16) if self._half else nullcontext():
            found: Tensor = self.model.base_model(input_ids=ids, use_cache=False, **given).last_hidden_state
        return found

    def _head(self, hidden: Float[Tensor, "texts width"]) -> Float[Tensor, " texts"]:
        found: Tensor = getattr(self.model, HEAD)(hidden.float())[:, 0]
        return found

    def save(self, directory: Path) -> None:
        """Write the model as transformers and the `reward_model` grader read it, with the tokenizer's files as they were."""
        self.model.save_pretrained(directory)
        for name, file in model_files(self._path).items():
            if not name.endswith((".safetensors", ".safetensors.index.json")) and not (directory / name).exists():
                shutil.copyfile(file, directory / name)
