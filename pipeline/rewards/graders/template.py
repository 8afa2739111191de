"""Texts for models that grade: a template with the completion's parts in it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipeline.common.errors import UserError
from pipeline.rewards.items import RewardItem

FIELDS = ("prompt", "question", "completion", "answer")
_FIELD = re.compile(r"\{(" + "|".join((*FIELDS, "first", "second")) + r")\}")


def filled(template: str, item: RewardItem) -> str:
    """The template with its fields replaced, all at once: what a model wrote can name no field of its own.

    >>> filled("{question} {completion}", RewardItem("{answer}", "4", {"question": "2+2?"}))
    '2+2? {answer}'
    """
    return _filled(template, {**_of_prompt(item), "completion": item.completion})


def filled_with_two(template: str, first: RewardItem, second: RewardItem) -> str:
    """The template with two completions of one prompt in it.

    >>> filled_with_two("{first} or {second}?", RewardItem("{second}", "4", {}), RewardItem("5", "4", {}))
    '{second} or 5?'
    """
    return _filled(template, {**_of_prompt(first), "first": first.completion, "second": second.completion})


def _of_prompt(item: RewardItem) -> dict[str, object]:
    question = item.prompt.get("question")
    prompt = item.prompt.get("prompt_text", question)
    return {"prompt": prompt, "question": question or prompt, "answer": item.answer}


def _filled(template: str, values: Mapping[str, object]) -> str:
    """What has no value stays as it is."""
    return _FIELD.sub(lambda match: str(values[match[1]] or "") if match[1] in values else match[0], template)


def check_template(name: str, template: str) -> None:
    """
    Raises:
        UserError: the template does not mention the completion.
    """
    if "{completion}" not in template:
        raise UserError(f"args.{name}: has no {{completion}} in it; fields are {', '.join(f'{{{field}}}' for field in FIELDS)}")
