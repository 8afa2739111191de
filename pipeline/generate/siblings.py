"""Stored rollouts that differ from wanted ones in their graders alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.artifact import open_artifact
from pipeline.store.files import write_text
from pipeline.store.layout import SCRATCH

REQUEST = "request.json"


def find_sibling(store: Store, request: Request) -> Artifact | None:
    """A finished rollouts artifact with the completions that a request for rollouts would generate; None if there is none.

    Its stage, its parents and its recipe are those of the request, except for `reward`. Looked at are manifests alone.
    """
    wanted = _without_rewards(request.to_json())
    for place, text in store.backend.finished(request.kind):
        try:
            content = json.loads(text)["content"]
            if _without_rewards({name: content[name] for name in wanted}) == wanted:
                return open_artifact(place)
        except (UserError, ValueError, KeyError, TypeError, RecursionError):
            continue  # a damaged one, which stands in nobody's way here
    return None


def remember(work: Work) -> None:
    """Write down in an unfinished artifact what was asked for, so that its shards are found when other graders are to grade."""
    write_text(work.scratch / REQUEST, json.dumps(work.request.to_json(), sort_keys=True))


def unfinished_siblings(store: Store, work: Work) -> list[Path]:
    """Directories on this machine of unfinished artifacts with completions that this work would generate, graded otherwise."""
    wanted, found = _without_rewards(work.request.to_json()), []
    for path in sorted(store.root.glob(f"{work.request.kind}/*/{SCRATCH}/{REQUEST}")):
        try:
            asked = json.loads(path.read_text(encoding="utf-8"))
            if path.parents[1] != work.path and _without_rewards({name: asked[name] for name in wanted}) == wanted:
                found.append(path.parents[1])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _without_rewards(made: dict[str, Any]) -> dict[str, Any]:
    return {**made, "recipe": {name: value for name, value in made["recipe"].items() if name != "reward"}}
