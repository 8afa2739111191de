"""The base model and the prompts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.base import Model


class ModelConfig(Model):
    path: str = Field(min_length=1)
    """Hugging Face model directory, a checkpoint such as runs/a/artifacts/checkpoint/3f9c..., a GGUF file (made into a plain
    checkpoint, without its quantization), or a hub name such as Qwen/Qwen2.5-1.5B-Instruct."""
    revision: str | None = None
    """Hub revision. Without one, the hub's current default is resolved once and its hash recorded."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of engine and trainer. auto: bfloat16 on a GPU that has it, float32 elsewhere."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Only for models whose code you have read."""
    link: Literal["auto", "always", "never"] = "auto"
    """Whether the store's weights are the same files as the model's (hard links), instead of copies. auto: of hub snapshots and
    checkpoint artifacts, which nobody changes in place; of other directories only where a copy shares its blocks (reflinks).
    always: of any directory; then never write into those files in place."""


class PromptSource(Model):
    path: str = Field(min_length=1)
    """A .parquet or .jsonl file, a directory written by `datasets.save_to_disk`, or a hub dataset name."""
    split: str | None = None
    """Split of a Hugging Face dataset."""
    subset: str | None = None
    """Configuration name of a hub dataset (GSM8K has main and socratic)."""
    revision: str | None = None
    """Hub revision of the dataset."""
    question: str = "question"
    """Column that holds the question."""
    answer: str = "answer"
    """Column that holds the reference answer."""
    prompt_id: str | None = None
    """Column that holds a unique id. Without one, the id is a hash of the question."""
    answer_pattern: str | None = None
    """Regular expression whose first group is the answer, for columns that hold a worked solution (GSM8K: '#### (.+)$')."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows."""
    bad_rows: Literal["refuse", "set_aside"] = "refuse"
    """Rows that do not fit. set_aside goes on without them and keeps them, with their reasons, beside the prompts."""


class DataConfig(Model):
    train: PromptSource
    """Prompts that rollouts are generated for."""
    heldout: PromptSource
    """Prompts that checkpoints are judged by."""
    allow_overlap: bool = False
    """Accept held-out questions that are also trained on."""
    template: str = "{question}"
    """Text given to the model; {question} is replaced. With chat: true it is the user's message."""
    chat: bool = False
    """Render with the tokenizer's chat template and ask for the assistant's turn. Templates that write a date get 26 Jul 2024."""
    system: str | None = None
    """System message, with chat: true."""
