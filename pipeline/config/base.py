"""What every section of the configuration is."""

from __future__ import annotations

import json
import typing
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Model(BaseModel):
    """Base of every section: unknown keys, infinite numbers and truth values for numbers are errors; values do not change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        serialize_by_alias=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes true for 1; who writes `epochs: true` meant something else."""
        items = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, bool) for item in items) and not allows_truth(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("expected another value than true or false (yes, no, on and off are these too, unless in quotes)")
        return value


def only_json(value: dict[str, Any]) -> dict[str, Any]:
    """A field's value, if a record can hold it.

    Raises:
        ValueError: it cannot, such as a date that YAML made of unquoted text.
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"only what JSON can hold (write a date in quotes): {error}") from None
    return value


def allows_truth(annotation: Any) -> bool:
    """Whether true and false are among the values of a type.

    >>> allows_truth(bool | None), allows_truth(float), allows_truth(tuple[int, ...])
    (True, False, False)
    """
    return annotation in (bool, Any) or any(allows_truth(part) for part in typing.get_args(annotation))
