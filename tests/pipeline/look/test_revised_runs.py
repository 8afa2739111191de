"""An expert's revisions: shown beside what was revised, exported, compared on, told of in the report, and their damage."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipeline.common.errors import UserError
from pipeline.compare.plan import find_snapshot
from pipeline.look.report.page import render
from pipeline.look.report.revisions import revisions_section
from pipeline.look.show.subject import find_subject
from pipeline.look.view.parts import parts_of
from pipeline.look.view.pool import RowPool
from pipeline.look.view.screens import Screens
from pipeline.run.record import load_run, save_run
from pipeline.store import Artifact, Request, Store, Work
from schemas import Pairs, Revisions, Rollouts, Shaped
from tests.pipeline.look.conftest import made, shards

Rollbook = Callable[..., tuple[int, str, str]]
OWN, MENDED = "two words", "two  words"
PAIRS = {"chosen": -1.5, "rejected": -0.75}


@pytest.fixture
def corrected(finished: Path) -> Path:
    """The run of `finished`, whose iteration 0 was trained on revisions: one group of an own completion and its correction."""
    run, store = load_run(finished), Store(finished / "artifacts")
    step = run.iterations[0]
    assert run.train_prompts and step.answers and step.answers.rollouts and step.checkpoint
    parents = {"rollouts": step.answers.rollouts, "policy": step.policy, "prompts": run.train_prompts}
    group = "train-0/1@89abcdef"
    own = shards(step.policy, 0, "train")["part-00000.parquet"][1][0] | {"group_id": group, "completion_text": OWN, "reward": 0.0}
    mended = own | {"sample_index": 1, "completion_text": MENDED, "reward": 1.0, "behavior_logprobs": None, "source": "expert"}
    rows = [{**row, "completion_token_ids": list(row["completion_text"].encode())} for row in (own, mended)]
    rows[0]["behavior_logprobs"] = [-0.5] * len(OWN)
    said = {"group_id": group, "token_weights": [1.0] * len(OWN), "change": None, "said": None, "note": None}
    roles = [
        {**said, "sample_index": 0, "role": "own", "said": MENDED},
        {**said, "sample_index": 1, "role": "revised", "change": 0.05, "token_weights": [1.0] * len(MENDED)},
    ]
    files = {"part-00000.parquet": (Rollouts, rows), "revisions-00000.parquet": (Revisions, roles)}
    step.revised = _named(made(store, "revisions", "revise/1", files, parents))
    kept = {"group_id": group, "weight": 1.0, "keep": True, "drop_reason": None}
    advantages = [{**kept, "sample_index": number, "advantage": number - 0.5} for number in (0, 1)]
    pair = {"group_id": group, "chosen_index": 1, "rejected_index": 0, "preference": 1.0, "margin": 1.0}
    tables = {"part-00000.parquet": (Shaped, advantages), "pairs-00000.parquet": (Pairs, [pair])}
    step.shaped = made(store, "shaped", "shape/1", tables, {"rollouts": step.revised}, of="revisions")
    request = Request(
        "checkpoint", "train/1", {"of": "pairs"}, (step.policy.as_parent("policy"), step.shaped.as_parent("shaped"))
    )
    with store.work(request) as work:
        assert isinstance(work, Work)
        (work.path / "config.json").write_text("{}", encoding="utf-8")
        step.checkpoint = work.finish({"iteration": 1}, notes={"reference_logprobs_of_pairs": PAIRS})
    run.iterations[1].policy = step.checkpoint
    save_run(run, finished)
    return finished


def _named(artifact: Artifact) -> Artifact:
    """With the summary that revise writes."""
    artifact.summary.update(asked=1, said=1, revised=1, references=0, unchanged=0, without_revision=0, change_mean=0.05)
    return artifact


def test_a_run_shows_what_was_revised_beside_its_revision(corrected: Path, rollbook: Rollbook) -> None:
    status, out, err = rollbook("show", corrected, "--of", "revised", "--prompt", "train-0")
    assert status == 0, err
    own, mended = (line for line in out.splitlines() if line.lstrip().startswith("#"))
    assert re.search(r"#0\s+own\s+reward 0\s+advantage -0\.5", own)
    assert re.search(r"#1\s+revised, 5% changed\s+reward 1\s+advantage \+0\.5", mended)
    assert out.index(OWN) < out.index(MENDED)
    status, out, _ = rollbook("show", corrected)
    assert status == 0 and "an expert's revisions of these were trained on (--of revised)" in out


def test_a_revisions_artifact_is_shown_by_itself_and_as_json(corrected: Path, rollbook: Rollbook) -> None:
    place = load_run(corrected).iterations[0].revised
    assert place is not None
    assert "mean reward 0.5" in rollbook("show", place.path)[1]
    out = rollbook("show", place.path, "--json")[1]
    assert '"role": "revised"' in out and '"said": "two words"' not in out and '"set": "revised"' in out


def test_the_page_has_both_side_by_side(corrected: Path) -> None:
    parts = parts_of([str(corrected)])
    revised = next(part for part in parts if part.set == "revised")
    assert revised.shaped is not None and next(part for part in parts if part.set == "rollouts").shaped is None
    screens = Screens(RowPool(parts), "a title")
    page = screens.show("group", {"of": revised.key, "group": "train-0/1@89abcdef"})
    assert page is not None and page.status == 200
    roles = re.findall(r"<dt>role</dt><dd>([^<]+)</dd>", page.html)
    assert roles == ["own", "revised, 5% changed"]
    said = [
        re.sub(r"<[^>]+>", "", text) for text in re.findall(r'<div class="said" dir="auto">(.*?)</div>', page.html, re.DOTALL)
    ]
    assert said == ["Q0", OWN, MENDED]
    listed = screens.show("", {"q": "set=revised advantage>0"})
    assert listed is not None and "1 to 1 of <strong>1</strong>" in listed.html
    alone = parts_of([revised.rollouts.url])
    assert [(part.set, part.shaped is not None, part.policy is not None) for part in alone] == [("revised", True, True)]


@pytest.mark.parametrize("of", ["revisions", "shaped"])
def test_pairs_of_own_and_revised_are_exported(corrected: Path, rollbook: Rollbook, tmp_path: Path, of: str) -> None:
    step = load_run(corrected).iterations[0]
    place = step.revised if of == "revisions" else step.shaped
    assert place is not None
    assert rollbook("export", place.path, "--to", "preference", "--out", tmp_path / "pairs")[0] == 0
    rows = pl.read_parquet(tmp_path / "pairs" / "data" / "*.parquet")
    assert rows.select("chosen", "rejected").rows() == [(MENDED, OWN)]


def test_a_dataset_of_revisions_has_their_table_too(corrected: Path, rollbook: Rollbook, tmp_path: Path) -> None:
    revised = load_run(corrected).iterations[0].revised
    assert revised is not None
    assert rollbook("export", revised.path, "--to", "dataset", "--out", tmp_path / "data")[0] == 0
    assert {path.name for path in (tmp_path / "data" / "data").iterdir()} == {"part-00000.parquet", "revisions-00000.parquet"}
    assert rollbook("export", revised.path, "--to", "sft", "--min-reward", "1", "--out", tmp_path / "sft")[0] == 0
    assert pl.read_parquet(tmp_path / "sft" / "data" / "*.parquet")["completion"].to_list() == [MENDED]


def test_a_comparison_trains_on_what_the_run_trained_on_unless_told_otherwise(corrected: Path) -> None:
    step = load_run(corrected).iterations[0]
    assert step.revised and step.answers and step.answers.rollouts
    assert find_snapshot(corrected, 0).rollouts.id == step.revised.id
    assert find_snapshot(step.revised.path, None).rollouts.id == step.revised.id
    assert find_snapshot(step.answers.rollouts.path, None).rollouts.id == step.answers.rollouts.id
    with pytest.raises(UserError, match="the rollouts of iteration 0, not of 1"):
        find_snapshot(step.revised.path, 1)


def test_the_report_counts_revisions_and_says_what_the_reference_thinks_of_pairs(corrected: Path, finished: Path) -> None:
    run = load_run(corrected)
    run.iterations[0].revised = _named(run.iterations[0].revised)  # type: ignore[arg-type]
    section = revisions_section(run)
    assert section is not None and section.grid is not None
    assert section.grid.rows == [["0", "1", "1", "5.0 %", "0", "0", "0", "-1.5", "-0.75"]]
    assert len(section.notes) == 1 and section.notes[0].startswith("Iteration 0: the reference gives preferred completions -1.50")
    page = render(run)
    assert '<section id="revisions">' in page and "mean share changed" in page and "rejected ones -0.75" in page
    run.iterations[0].revised = None
    assert revisions_section(run) is None and '<section id="revisions">' not in render(run)


def test_damage_of_revisions_is_said_with_what_can_be_done(corrected: Path, rollbook: Rollbook) -> None:
    revised = load_run(corrected).iterations[0].revised
    assert revised is not None
    path = revised.path / "revisions-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    status, out, _ = rollbook("repair", revised.path)
    assert status == 1 and "damaged   revisions-00000.parquet (2 rows)" in out and "--regenerate" in out
    assert "--drop-shards" not in out
    assert find_subject(str(revised.path)).only().kind == "revisions"
