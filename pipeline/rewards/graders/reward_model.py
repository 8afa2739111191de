"""reward_model: the score of a sequence-classification model.

Which completions are computed together follows from the data alone: completions of one group, in their order, `batch_size` at a
time, padded to the longest of them. So the scores are the same bits whatever the number of workers, the order in which
completions were finished, and whether they are graded while they are generated or later. On another machine, device or number
of threads they agree up to rounding.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.common.errors import UserError
from pipeline.rewards.graders.template import check_template, filled
from pipeline.rewards.items import RewardItem, Score

if TYPE_CHECKING:
    from torch import Tensor

WORK = ("path", "revision", "device", "threads")


def reward_model(
    *,
    path: str,
    revision: str | None = None,
    label: str | int | None = None,
    output: Literal["logit", "probability"] = "logit",
    template: str = "{prompt}{completion}",
    chat: bool = False,
    system: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    batch_size: int = 8,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int = 1,
) -> RewardModel:
    """The output of a transformers sequence-classification model for prompt and completion.

    One process holds the model, whatever the number of workers. Weights are read from safetensors, and code that ships with a
    model is not run. A text longer than the model takes is an error of its row: nothing is cut.

    Args:
        path: directory of the model, or its name on the hub. The hashes of its files are in the recipe.
        revision: hub revision.
        label: name or number of the output that is the score. Needed if the model has several.
        output: probability is softmax over the outputs, or sigmoid of a single one.
        template: the model's text; {prompt}, {question}, {completion} and {answer} are replaced. Not with chat.
        chat: use the model's chat template: the question is the user's message, the completion the assistant's.
        system: system message, with chat.
        dtype: number format.
        batch_size: completions of a group that are computed together.
        device: auto is the GPU if there is one.
        threads: of a CPU.
    """
    return RewardModel(_located(path, revision), label, output, template, chat, system, dtype, batch_size, device, threads)


class RewardModel:
    """See `reward_model`."""

    seconds_per_item: float | None = None

    def __init__(
        self,
        path: Path,
        label: str | int | None,
        output: str,
        template: str,
        chat: bool,
        system: str | None,
        dtype: str,
        batch_size: int,
        device: str,
        threads: int,
    ) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        from pipeline.sources.tokenizer import load_tokenizer

        torch.set_num_threads(threads)
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if self._device == "cuda" and not torch.cuda.is_available():
            raise UserError("args.device: cuda, and no GPU is to be seen. Use cpu, or auto")
        try:
            self._tokenizer: Any = load_tokenizer(path, trust_remote_code=False)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        except (ValueError, OSError, KeyError, RuntimeError, ImportError) as error:
            raise UserError(
                f"{path}: transformers cannot load it as a reward model: {' '.join(str(error).split())[:300]}"
            ) from None
        if missing := sorted(report["missing_keys"]):
            raise UserError(
                f"{path}: has no weights for {', '.join(missing[:3])}: it is no sequence-classification model, and its scores "
                "would be random. Name a model that was trained as one"
            )
        self._model: Any = model.eval().to(self._device)
        self._column = _output_of(self._model.config, label, path)
        self._output, self._template, self._chat, self._system, self._size = output, template, chat, system, batch_size
        if chat and not self._tokenizer.chat_template:
            raise UserError(f"{path}: its tokenizer has no chat template. Set chat: false and write args.template")
        limits = [getattr(self._model.config, "max_position_embeddings", None), self._tokenizer.model_max_length]
        self._longest = min([limit for limit in limits if isinstance(limit, int) and limit > 0], default=1 << 30)
        self.notes: list[str] = [f"{path.name} on {self._device} in {dtype}"]

    def grade(self, items: Sequence[RewardItem]) -> list[Score]:
        scores: list[Score] = []
        for _, group in itertools.groupby(enumerate(items), key=lambda entry: entry[1].group_id or entry[0]):
            members = [item for _, item in group]
            for start in range(0, len(members), self._size):
                scores += self._batch(members[start : start + self._size])
        return scores

    def _batch(self, items: Sequence[RewardItem]) -> list[Score]:
        from pipeline.sources.tokenizer import encode

        tokens = encode(self._tokenizer, [self._text(item) for item in items], special=not self._chat)
        fits = [0 < len(ids) <= self._longest for ids in tokens]
        taken = [ids for ids, fit in zip(tokens, fits, strict=True) if fit]
        values = iter(self._scores(taken) if taken else [])
        return [
            Score(next(values)) if fit else Score(None, f"{len(ids)} tokens, and the reward model takes 1 to {self._longest}")
            for ids, fit in zip(tokens, fits, strict=True)
        ]

    def _scores(self, tokens: list[list[int]]) -> list[float]:
        import torch

        pad, longest = self._pad(tokens), max(map(len, tokens))
        for config in (self._model.config, self._model.config.get_text_config()):  # with images, two
            config.pad_token_id = pad
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in tokens], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens], device=self._device)
        with torch.inference_mode():
            logits: Tensor = self._model(input_ids=ids, attention_mask=mask).logits.float()
        if self._output == "probability":
            logits = logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)
        return [float(value) for value in logits[:, self._column].cpu()]

    def _pad(self, tokens: list[list[int]]) -> int:
        """A token that no text has. Models that read off the last token find it as the last one that is not this."""
        own, there = self._tokenizer.pad_token_id, set(itertools.chain.from_iterable(tokens))
        if own is not None and own not in there:
            return int(own)
        return next(token for token in itertools.count() if token not in there)

    def _text(self, item: RewardItem) -> str:
        if not self._chat:
            return filled(self._template, item)
        messages = [{"role": "system", "content": self._system}] if self._system else []
        messages.append({"role": "user", "content": filled("{question}", item)})
        messages.append({"role": "assistant", "content": item.completion})
        from pipeline.sources.rendering import DAY

        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, strftime_now=DAY.strftime))


def check(*, path: str, template: str = "{prompt}{completion}", batch_size: int = 8, threads: int = 1, **_: object) -> None:
    """Raise for a directory that holds no model, and for settings that no model could be used with."""
    check_template("template", template)
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value < 1:
            raise UserError(f"args.{name}: {value}, expected at least 1")
    if Path(path).is_dir():
        _files(Path(path))


def source(*, path: str, revision: str | None = None, **_: object) -> str:
    """Hash over the hashes of the model's files. A hub model that is not here is downloaded."""
    files = _files(_located(path, revision))
    stats = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files.values())
    return _digest(stats)


@cache
def _digest(stats: tuple[tuple[str, int, int], ...]) -> str:
    """Files are read once in a process, unless they change."""
    from pipeline.sources.models import hashes_of
    from schemas.manifest import digest

    return digest(hashes_of({Path(name).name: Path(name) for name, _, _ in stats}))


def _located(path: str, revision: str | None) -> Path:
    from pipeline.config.data import ModelConfig
    from pipeline.sources.models import locate

    try:
        return locate(ModelConfig(path=os.path.expanduser(path), revision=revision))
    except UserError as error:
        raise UserError(str(error).replace("model.path", "args.path", 1)) from None


def _files(directory: Path) -> dict[str, Path]:
    from pipeline.sources.models import model_files

    try:
        return model_files(directory)
    except UserError as error:
        text = str(error).partition("Read that code")[0].rstrip(" .")
        raise UserError(text if text == str(error) else f"{text}; reward models are loaded without it") from None


def _output_of(config: Any, label: str | int | None, path: Path) -> int:
    """The number of the output that is the score.

    Raises:
        UserError: the model has several outputs and none is named, or not that one.
    """
    names = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    count = int(config.num_labels)
    if label is None and count == 1:
        return 0
    known = ", ".join(f"{number} ({names.get(number, '')})" for number in range(count))
    if label is None:
        raise UserError(f"{path}: has {count} outputs: {known}. Name one in args.label")
    found = [number for number in range(count) if label in (number, str(number), names.get(number))]
    if not found:
        raise UserError(f"args.label: {label!r} is none of the outputs of {path}: {known}")
    return found[0]
