"""Importing fixtures into a store, with the tokenizer of the demo's base model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.exchange.imports.format import Options
from pipeline.exchange.imports.rows import Declared
from pipeline.exchange.imports.stage import import_rollouts, order_of
from pipeline.exchange.imports.tokens import ImportRendering
from pipeline.store import Artifact, Store

BASE = Path(__file__).parents[4] / "data" / "base"


@pytest.fixture
def bring(store: Store) -> Callable[..., Artifact]:
    """bring(path, form=None, model=BASE, options={...}, declared={...}, rendering={...}): the rollouts artifact."""

    def make(
        *paths: Path,
        form: str | None = None,
        model: Path | None = BASE,
        options: dict[str, Any] | None = None,
        declared: dict[str, Any] | None = None,
        rendering: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Artifact:
        order = order_of(
            paths,
            form,
            model=model,
            options=Options(**(options or {})),
            declared=Declared(**(declared or {})),
            rendering=ImportRendering(**(rendering or {})),
            **settings,
        )
        return import_rollouts(store, order)[0]

    return make


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """written(rows, "a.jsonl"): a file with these rows; texts are lines as they are."""

    def make(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return path

    return make
