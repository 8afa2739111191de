"""Texts for models that grade: a template with the completion's parts in it."""

from __future__ import annotations

import re

from pipeline.common.errors import UserError
from pipeline.rewards.items import RewardItem

FIELDS = ("prompt", "question", "completion", "answer")
_FIELD = re.compile(r"\{(" + "|".join(FIELDS) + r")\}")


def filled(template: str, item: RewardItem) -> str:
    """The template with its fields replaced, all at once: what a model wrote can name no field of its own.

    >>> filled("{question} {completion}", RewardItem("{answer}", "4", {"question": "2+2?"}))
    '2+2? {answer}'
    """
    question = item.prompt.get("question")
    prompt = item.prompt.get("prompt_text", question)
    values = {"prompt": prompt, "question": question or prompt, "completion": item.completion, "answer": item.answer}
    return _FIELD.sub(lambda match: str(values[match[1]] or ""), template)


def check_template(name: str, template: str) -> None:
    """
    Raises:
        UserError: the template does not mention the completion.
    """
    if "{completion}" not in template:
        raise UserError(f"args.{name}: has no {{completion}} in it; fields are {', '.join(f'{{{field}}}' for field in FIELDS)}")
