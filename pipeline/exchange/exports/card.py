"""Cards: README.md with a YAML front matter, as the Hugging Face hub and `datasets` read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from pipeline.common.text import code
from pipeline.store import Artifact
from schemas.table import Table


def card(front: Mapping[str, Any], parts: Iterable[str]) -> str:
    """Front matter and Markdown."""
    head = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(head), "|".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def origin(artifact: Artifact) -> str:
    """Where an artifact comes from, by ids."""
    content = artifact.manifest.content
    rows = [("this", content.kind, artifact.id), *((parent.role, parent.kind, parent.id) for parent in content.parents)]
    sources = [("source file", str(one.get("name")), str(one.get("sha256"))) for one in artifact.recipe.get("sources", ())]
    lines = table(["role", "kind or name", "id or sha256"], [[code(part) for part in row] for row in (*rows, *sources)])
    return f"Made by the stage {code(content.stage)} of rollbook. Ids are hashes of everything below them.\n\n{lines}"


def figures(artifact: Artifact) -> str:
    """The summary of an artifact."""
    flat = [(name, value) for name, value in artifact.summary.items() if isinstance(value, int | float)]
    return table(["figure", "value"], [[code(name), code(value)] for name, value in flat])


def columns(of: type[Table]) -> str:
    """What every column means."""
    rows = []
    for field in of.arrow_schema():
        metadata = {key.decode(): text.decode() for key, text in (field.metadata or {}).items()}
        rows.append([code(field.name), code(field.type), metadata["description"].replace("|", "\\|")])
    return table(["column", "type", "meaning"], rows)
