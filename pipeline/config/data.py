"""The base model and the prompts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Model

RENDERED_BY = frozenset(("conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message"))
RENDERED_BY |= {
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
}
RENDERED_BY |= {"tokenizer_kwargs", "strftime_now"}
"""What rendering decides, and no template's own setting."""


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


class QuestionSet(Model):
    path: str = Field(min_length=1)
    """A .parquet or .jsonl file, a directory written by `datasets.save_to_disk`, or a hub dataset name."""
    split: str | None = None
    """Split of a Hugging Face dataset."""
    subset: str | None = None
    """Configuration name of a hub dataset (GSM8K has main and socratic)."""
    revision: str | None = None
    """Hub revision of the dataset."""
    question: str = "question"
    """Column that holds the question: text, or chat messages, of which the user's last turn is the question (with data.chat).
    Dotted names lead into columns: extra_info.question."""
    answer: str = "answer"
    """Column that holds the reference answer: text, a number, or a list (of one: what it holds; of several: as JSON). Dotted
    names lead into columns: reward_model.ground_truth."""
    prompt_id: str | None = None
    """Column that holds a unique id. Without one, the id is a hash of the question."""
    answer_pattern: str | None = None
    """Regular expression whose first group is the answer, for columns that hold a worked solution (GSM8K: '#### (.+)$')."""
    transcript: bool = False
    """The column of questions holds texts of turns as hh-rlhf has them, "Human: …" and "Assistant: …", to be read as messages."""
    where: str | None = Field(default=None, min_length=1)
    """Use only rows of which this SQL expression over the columns is true: "level >= 3 AND source LIKE 'olymp%'"."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows, or with `lot` as many drawn by lot."""
    lot: Annotated[int, Field(ge=0)] | None = None
    """Seed by which `limit` and `share` draw rows by lot. Without one they take the first."""
    share: float | None = Field(default=None, gt=0)
    """This set's part of a mix, beside the shares of the others. As many rows are taken as the set that is shortest for its share
    allows. Without shares all rows of all sets are."""
    bad_rows: Literal["refuse", "set_aside"] = "refuse"
    """Rows that do not fit. set_aside goes on without them and keeps them, with their reasons, beside the prompts."""


class PromptSource(QuestionSet):
    more: tuple[QuestionSet, ...] = ()
    """Further sets that are mixed with this one."""

    @property
    def sets(self) -> tuple[QuestionSet, ...]:
        """This set and those that are mixed with it."""
        return (self, *self.more)

    @model_validator(mode="after")
    def _shares_of_all(self) -> Self:
        shares = [one.share is not None for one in self.sets]
        if any(shares) and not (self.more and all(shares)):
            raise ValueError("share: in a mix either every set has one, or none; without `more` there is no mix")
        return self


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
    """System message, with chat: true. Messages that begin with a system message of their own keep it."""
    chat_template_kwargs: dict[str, Any] = {}
    """What the chat template is told beside the messages, such as {enable_thinking: false}."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _not_ours(cls, given: dict[str, Any]) -> dict[str, Any]:
        if ours := sorted(given.keys() & RENDERED_BY):
            raise ValueError(f"{ours[0]} is not for the template alone; expected names that the chat template itself reads")
        return given

    @model_validator(mode="after")
    def _told_to_a_template(self) -> Self:
        if self.chat_template_kwargs and not self.chat:
            raise ValueError("chat_template_kwargs: only chat templates read them; set chat: true")
        return self
