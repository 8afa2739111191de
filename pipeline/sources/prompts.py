"""Prompts from JSONL, Parquet or a Hugging Face dataset: read, checked, rendered, kept as an artifact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.common.errors import DataError
from pipeline.config.data import PromptSource, QuestionSet
from pipeline.run.process import Event, Reporter
from pipeline.sources import sets
from pipeline.sources.dialogues import asked_of, first_dialogue, shared_questions
from pipeline.sources.mixing import Sifted, load
from pipeline.sources.readers import refuse_missing
from pipeline.sources.rendering import Render, Rendering
from pipeline.sources.sets import COLUMNS, Misfits
from pipeline.store import Artifact, Request, Store, read_table
from pipeline.store.files import sha256_of
from pipeline.store.store import load_artifact, verified
from pipeline.store.work import Work
from schemas import Prompts, SetAside

ASIDE = "set-aside.parquet"


def source_hash(source: PromptSource) -> str:
    """What identifies the source's content: the hash of its bytes, or a hub dataset's name and revision; of several sets, of all.

    Raises:
        UserError: no such file, and not a hub name either.
    """
    hashes = [_set_hash(one) for one in source.sets]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _set_hash(source: QuestionSet) -> str:
    path = Path(source.path)
    if path.is_file():
        return sha256_of(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listing = "\n".join(f"{file.relative_to(path)} {sha256_of(file)}" for file in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    refuse_missing(source)
    return f"hub:{source.path}@{source.revision or 'default'}"


def rows_hash(prompts: pl.DataFrame) -> str:
    """What identifies prompts: the hash of their ids, questions, answers and metadata, in their order."""
    digest = hashlib.sha256()
    for row in prompts.select(COLUMNS).iter_rows():
        digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def make_prompts(
    store: Store,
    request: Request,
    source: PromptSource,
    render: Render,
    disjoint_from: Artifact | None,
    misfits: Misfits | None = None,
) -> Artifact:
    """Read, check and render a source.

    What is set aside is recorded beside the prompts, and is no part of what they are: without those rows they are the same.

    Args:
        render: turns questions into the texts given to the model.
        disjoint_from: prompts that this source must not overlap with.
        misfits: says which prompts do not fit.

    Raises:
        DataError: names the file, and the row and column of the first problems.
    """
    with store.work(request) as work:
        if not isinstance(work, Work):
            return work
        frame, bad = load(source, misfits)
        if disjoint_from is not None:
            _refuse_overlap(source, frame, disjoint_from)
        frame = frame.with_columns(prompt_text=pl.Series(render(asked_of(frame)), dtype=pl.String))
        work.write_table("prompts.parquet", frame, Prompts)
        notes: dict[str, Any] = {"read_from": ", ".join(one.path for one in source.sets), "source_hash": source_hash(source)}
        if not bad.is_empty():
            work.write_table(ASIDE, bad, SetAside)
            notes["set_aside"] = len(bad)
        return work.finish({"prompts": len(frame)}, outside_id=(ASIDE,), notes=notes)


def work(spec: Event, reporter: Reporter) -> Event:
    """Make the prompts of a spec.

    Args:
        spec: store, and jobs: a list of {request, source (a PromptSource), rendering (a Rendering), disjoint_from (path of an
            artifact, or null)}.

    Returns:
        {"artifacts": paths, in the order of the jobs}.
    """
    store, made = Store(spec["store"], reporter.note), []
    for job in spec["jobs"]:
        source = PromptSource.model_validate(job["source"])
        disjoint_from = load_artifact(job["disjoint_from"]) if job["disjoint_from"] else None
        rendering = Rendering(**job["rendering"])
        if rendering.chat:
            verified(rendering.model)
        request, render = Request.from_json(job["request"]), rendering.renderer()
        made.append(make_prompts(store, request, source, render, disjoint_from, rendering.misfits))
    return {"artifacts": [str(artifact.path) for artifact in made]}


def rows_of(artifact: Artifact) -> Iterator[dict[str, Any]]:
    """Rows of a prompts artifact, read when the first is asked for."""
    yield from read_table(artifact, Prompts).iter_rows(named=True)


def load_once(source: PromptSource, rendering: Rendering) -> Sifted:
    """A source's rows, of which those do not fit whose prompts leave no room for a completion. Read once while it is the same.

    Raises:
        UserError, DataError: as `load` and `Rendering.refuse_unfit`.
    """
    found = _load(source.model_dump_json(), source_hash(source), rendering)
    rendering.refuse_unfit(source.path, first_dialogue(found.good))
    return found


@lru_cache(maxsize=4)
def _load(source: str, digest: str, rendering: Rendering) -> Sifted:
    return load(PromptSource.model_validate_json(source), rendering.misfits)


def worked_solutions(source: PromptSource) -> dict[str, str]:
    """Of sets whose answers are taken out of worked solutions: those, by the question.

    Raises:
        UserError, DataError: one cannot be read.
    """
    return {question: solution for one in source.sets for question, solution in sets.worked_solutions(one).items()}


def _refuse_overlap(source: PromptSource, frame: pl.DataFrame, other: Artifact) -> None:
    shared = shared_questions(frame, read_table(other, Prompts, ["question", "metadata"]))
    if not shared.is_empty():
        raise DataError(
            f"{source.path}: {len(shared)} questions are also training prompts, the first is {shared['prompt_id'][0]!r}. "
            "Remove them, or set data.allow_overlap: true"
        )
