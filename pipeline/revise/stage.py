"""The revise stage: file by file, since what is written of one own completion depends on no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.common.errors import UserError
from pipeline.config.engine import EngineConfig
from pipeline.config.revise import ReviseConfig
from pipeline.generate.shards import group_id
from pipeline.generate.summary import read_scalars, summarize
from pipeline.generate.turns import turns_beside
from pipeline.revise.experts import ByModel, Correction, Reviser, named, reviser_of
from pipeline.revise.weights import change_of, changed, weights
from pipeline.rewards.items import RewardItem, prompt_for_grader
from pipeline.run.process import Event, Reporter
from pipeline.sources.prompts import rows_of
from pipeline.sources.tokenizer import encode, load_tokenizer
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.store import verified
from pipeline.store.tables import scan_table
from schemas import Revisions, Rollouts
from schemas.rollouts import FAILED

SAME, SPECIAL = "the expert changes nothing", "has special tokens of the policy in it"
TOO_MUCH = "differs from the own completion in {share:.0%} of the tokens"


def revise(spec: Event, reporter: Reporter) -> Event:
    """Make the revisions artifact of a spec, going on after the last whole file.

    Args:
        spec: store, request, rollouts, policy, prompts and reviser (places of artifacts; a reviser only where vLLM runs one),
            revise (a ReviseConfig), engine (an EngineConfig), trust_remote_code.

    Returns:
        {"artifact": path}.

    Raises:
        UserError: the expert cannot be asked, or revised nothing of what it was asked about.
    """
    request, config = Request.from_json(spec["request"]), ReviseConfig.model_validate(spec["revise"])
    with Store(spec["store"], reporter.note).work(request) as work:
        if isinstance(work, Artifact):
            return {"artifact": str(work.path)}
        trusted: bool = spec["trust_remote_code"]
        reviser = verified(spec["reviser"]) if spec["reviser"] else None
        engine, dtype = EngineConfig.model_validate(spec["engine"]), request.recipe["by"].get("dtype", "float32")
        expert = reviser_of(config, reviser, engine, dtype, reporter, trust_remote_code=trusted)
        try:
            made = revised_by(expert, work, spec, reporter)
        finally:
            if isinstance(expert, ByModel):
                expert.rest()
        return {"artifact": str(made.path)}


def revised_by(expert: Reviser, work: Work, spec: Event, reporter: Reporter) -> Artifact:
    """As `revise`, by whoever says what becomes of each completion: all that follows from it does so here.

    Args:
        spec: rollouts, policy and prompts are read.
    """
    rollouts, recipe = verified(spec["rollouts"]), work.request.recipe
    scan_table(rollouts, Rollouts)
    files = rollouts.tables("rollouts")
    work.require_space(sum(path.stat().st_size for path in files), "revisions")
    tokenizer: Any = load_tokenizer(verified(spec["policy"]).path, trust_remote_code=spec["trust_remote_code"])
    prompts = {row["prompt_id"]: prompt_for_grader(row) for row in rows_of(verified(spec["prompts"]))}
    writer = _RevisionRows(
        recipe, _OwnTokens(tokenizer, tuple((recipe.get("sampling") or {}).get("stop") or ())), work.request.key
    )
    for number, path in enumerate(files):
        beside = _beside(path.name)
        if not (work.has_table(beside, Revisions) and work.has_table(path.name, Rollouts)):
            if turns_beside(path) is not None:
                raise UserError(f"{path}: episodes of several turns cannot be revised as one text. Leave `revise` out")
            rows, revisions = writer.written(_owns(path, recipe["samples"]), expert, prompts)
            work.write_table(beside, revisions, Revisions)
            work.write_table(path.name, rows, Rollouts)
        reporter.progress(number + 1, len(files), "files")
    summary = _summary([work.path / path.name for path in files], [work.path / _beside(path.name) for path in files])
    if summary["asked"] and not summary["said"]:
        first = pl.scan_parquet([work.path / _beside(path.name) for path in files], glob=False).drop_nulls("note").head(1)
        why = first.collect()["note"][0]
        raise UserError(
            f"revise: none of the {summary['asked']} completions that {expert.name.removeprefix('revise ')} was asked about came "
            f"back with a text. The first: {why}"
        )
    if told := _told(summary):
        reporter.note(told)
    return work.finish(summary)


def _beside(name: str) -> str:
    return f"revisions-{name.removeprefix('part-')}"


def _owns(path: Path, samples: int) -> pl.DataFrame:
    """The own completions of a file that are looked at: the first of each group that the engine did not fail on."""
    rows = pl.scan_parquet(path, glob=False).select(list(Rollouts.columns()))
    usable = rows.filter(~pl.col("status").is_in(FAILED), pl.col("completion_token_ids").list.len() > 0)
    return usable.sort("group_id", "sample_index").group_by("group_id", maintain_order=True).head(samples).collect()


@dataclass(frozen=True)
class _OwnTokens:
    """Texts as the policy would have written them."""

    tokenizer: Any
    stops: tuple[str, ...]

    def tokens(self, text: str, own: Mapping[str, Any]) -> list[int] | None:
        """Token ids of a text that takes the place of a completion, ended as that one is, or as one that is not cut would be.

        None of a text in which special tokens are spelled: it would end, or open a turn, where its author says so.
        """
        ids = own["completion_token_ids"]
        specials = set(self.tokenizer.all_special_ids)
        tail = [ids[-1]] if ids and ids[-1] in specials else []
        spelled = self.tokenizer.decode(ids, skip_special_tokens=True)
        stop = spelled[len(own["completion_text"]) :] if spelled.startswith(own["completion_text"]) else ""
        if stop not in self.stops:
            stop = ""
        if own["finish_reason"] != "stop" and not stop and not tail:
            end = self.tokenizer.eos_token_id
            tail, stop = ([], self.stops[0]) if self.stops else ([] if end is None else [int(end)], "")
        found = encode(self.tokenizer, [text + stop], special=False)[0]
        return None if specials.intersection(found) else found + tail


@dataclass(frozen=True)
class _Asked:
    """An own completion, and what the expert said of it."""

    own: dict[str, Any]
    said: Correction | None
    """None: nobody was asked, since it is solved."""


@dataclass
class _RevisionRows:
    """Makes the rows of a file."""

    recipe: Mapping[str, Any]
    spelling: _OwnTokens
    key: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    revisions: list[dict[str, Any]] = field(default_factory=list)

    def written(
        self, owns: pl.DataFrame, expert: Reviser, prompts: Mapping[str, Mapping[str, Any]]
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Rows of `Rollouts` and of `Revisions`."""
        self.rows, self.revisions = [], []
        own_rows = owns.to_dicts()
        asked = [row for row in own_rows if not self._is_solved(row)]
        items = [
            RewardItem(
                row["completion_text"],
                row["answer"],
                prompts.get(row["prompt_id"]) or _of_row(row),
                row["group_id"],
                row["sample_index"],
                row["finish_reason"],
            )
            for row in asked
        ]
        said = dict(zip(((row["group_id"], row["sample_index"]) for row in asked), expert.revise(items), strict=True))
        for row in own_rows:
            self._add(_Asked(row, said.get((row["group_id"], row["sample_index"]))), expert.name)
        return (
            pl.DataFrame(self.rows, schema={name: column.dtype for name, column in Rollouts.columns().items()}),
            pl.DataFrame(self.revisions, schema={name: column.dtype for name, column in Revisions.columns().items()}),
        )

    def _is_solved(self, row: Mapping[str, Any]) -> bool:
        least = self.recipe["solved_at"]
        return least is not None and row["reward"] is not None and row["reward"] >= least

    def _add(self, asked: _Asked, expert: str) -> None:
        """The group of one own completion: itself, its revision, and the reference answer where that is another text."""
        own, said, note, text = asked.own, asked.said, None, None
        if said is not None and (text := said.text) is None:
            note = said.note
        right = said is None or text == own["completion_text"]
        group = self._group(own)
        flags = [False] * len(own["completion_token_ids"])
        others: list[tuple[str, list[int], str, list[bool], float | None]] = []
        if text is not None and not right:
            tokens = self.spelling.tokens(text, own)
            mine, theirs = changed(own["completion_token_ids"], tokens or [])
            change = change_of(own["completion_token_ids"], tokens or [])
            if tokens is None:
                note = SPECIAL
            elif change > self.recipe["most_change"]:
                note = TOO_MUCH.format(share=change)
            else:
                flags = mine
                others.append((text, tokens, "revised", theirs, change))
        elif text is not None:
            note = SAME
        template = self.recipe["reference"]
        if template is not None and own["answer"] is not None and not right:
            reference = template.replace("{answer}", own["answer"])
            if reference not in (own["completion_text"], *(other[0] for other in others)):
                tokens = self.spelling.tokens(reference, own)
                if tokens is not None:
                    others.append((reference, tokens, "reference", [False] * len(tokens), None))
        self.rows.append({**own, "group_id": group, "sample_index": 0, "reward": float(right), "error": None})
        said_text = said.text if said is not None else None
        self._weigh(group, 0, "own", flags, None, said_text, note)
        for number, (text, tokens, role, theirs, share) in enumerate(others, start=1):
            self.rows.append({**self._row(own, group, number, text, tokens), "engine": expert})
            self._weigh(group, number, role, theirs, share)

    def _group(self, own: Mapping[str, Any]) -> str:
        """A name of its own for each own completion."""
        return group_id(f"{named(own['group_id'])}/{own['sample_index']}", self.key)

    def _row(self, own: Mapping[str, Any], group: str, number: int, text: str, tokens: Sequence[int]) -> dict[str, Any]:
        """A completion that nobody drew, at the temperature of the own one, so that both are scored alike."""
        unknown = dict.fromkeys(("behavior_logprobs", "action_mask", "seed", "top_p", "top_k", "min_p", "error"))
        return {
            **own,
            **unknown,
            "group_id": group,
            "sample_index": number,
            "completion_token_ids": list(tokens),
            "completion_text": text,
            "finish_reason": "stop",
            "reward": 1.0,
            "policy_id": "unknown",
            "source": "expert",
            "logprobs_mode": "unknown",
            "status": "ok",
        }

    def _weigh(
        self,
        group: str,
        number: int,
        role: str,
        flags: Sequence[bool],
        change: float | None,
        said: str | None = None,
        note: str | None = None,
    ) -> None:
        kept, other = self.recipe["kept_weight"], self.recipe["changed_weight"]
        values = weights(flags, kept, other) if any(flags) or role == "revised" else [1.0] * len(flags)
        names = ("group_id", "sample_index", "role", "token_weights", "change", "said", "note")
        self.revisions.append(dict(zip(names, (group, number, role, values, change, said, note), strict=True)))


def _of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a prompt that the prompts artifact does not have."""
    return {"prompt_id": row["prompt_id"], "prompt_text": row["prompt_text"], "question": row["prompt_text"], "metadata": {}}


def _summary(parts: Sequence[Path], beside: Sequence[Path]) -> dict[str, Any]:
    rows = pl.scan_parquet(list(beside), glob=False).select("role", "change", "said", "note").collect()
    own = rows.filter(pl.col("role") == "own")
    notes = own.drop_nulls("note").filter(pl.col("note") != SAME)
    roles = Counter(rows["role"].to_list())
    revised = rows.filter(pl.col("role") == "revised")
    return {
        **summarize(read_scalars(parts)),
        "asked": int((own["said"].is_not_null() | own["note"].is_not_null()).sum()),
        "said": int(own["said"].is_not_null().sum()),
        "revised": roles["revised"],
        "references": roles["reference"],
        "unchanged": int((own["note"] == SAME).sum()),
        "without_revision": len(notes),
        "change_mean": revised["change"].mean(),
    }


def _told(summary: Mapping[str, Any]) -> str | None:
    """What the user should know of completions that were asked about and not revised."""
    if not summary["without_revision"]:
        return None
    return (
        f"{summary['without_revision']} of {summary['asked']} completions have no revision; the column note of the table "
        "revisions says why"
    )
