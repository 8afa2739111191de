"""The import as a whole: found again, gathered in any order, refused with a remedy, and scored."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from pipeline.common.errors import DataError, UserError
from pipeline.exchange.exports.dataset import write_dataset
from pipeline.exchange.imports import gather
from pipeline.exchange.imports.read import names_of, source_files
from pipeline.exchange.imports.scored import filled, missing, with_scores
from pipeline.exchange.imports.stage import import_rollouts, order_of
from pipeline.store import Artifact, Request, Store
from pipeline.store.work import Work
from schemas import Rollouts, Scores

Bring = Callable[..., Artifact]
Written = Callable[..., Path]


def _row(prompt: int, place: int, **more: Any) -> dict[str, Any]:
    text = {"prompt": f"p{prompt}", "completion": f"c{place}"}
    return {**text, "prompt_tokens": [prompt], "completion_tokens": [place], "reward": 1.0, **more}


def test_importing_again_finds_the_artifact_wherever_the_file_lies(bring: Bring, written: Written, tmp_path: Path) -> None:
    path = written([_row(1, 1)])
    first = bring(path, form="plain", model=None)
    (tmp_path / "elsewhere").mkdir()
    path.rename(moved := tmp_path / "elsewhere" / path.name)
    again = bring(moved, form="plain", model=None)
    assert (again.id, again.path) == (first.id, first.path)
    assert bring(moved, form="plain", model=None, declared={"temperature": 1.0}).id != first.id


def test_scattered_groups_come_out_whole_in_one_file(bring: Bring, written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "RANGE_GROUPS", 3)
    monkeypatch.setattr(gather, "BUFFER_ROWS", 7)
    monkeypatch.setattr(gather, "SHARD_ROWS", 8)
    rows = [_row(prompt, place) for place in range(4) for prompt in range(10)]
    random.Random(0).shuffle(rows)
    artifact = bring(written(rows), form="plain", model=None)
    assert artifact.summary["groups"] == 10 and len(artifact.tables("rollouts")) > 4
    seen: set[str] = set()
    for path in artifact.tables("rollouts"):
        frame = pl.read_parquet(path)
        groups = frame.group_by("group_id").agg(
            pl.len(), pl.col("sample_index").sort().implode(), pl.col("prompt_text").n_unique()
        )
        assert groups["len"].to_list() == [4] * len(groups) and groups["prompt_text"].max() == 1
        assert not seen & set(groups["group_id"])
        seen |= set(groups["group_id"])
    prompts = pl.read_parquet(artifact.tables("rollouts"))["prompt_text"].unique(maintain_order=True)
    assert prompts.to_list() == list(dict.fromkeys(row["prompt"] for row in rows))


def test_reward_columns_of_some_rows_are_null_in_the_others(bring: Bring, written: Written) -> None:
    artifact = bring(written([_row(1, 1, reward_a=0.5), _row(1, 2, reward_b=1.5, reward=None)]), form="plain", model=None)
    rows = pl.read_parquet(artifact.tables("rollouts"))
    assert rows.select("reward", "reward_a", "reward_b").rows() == [(1.0, 0.5, None), (1.5, None, 1.5)]


def test_what_dataset_exports_comes_back_as_it_was(bring: Bring, written: Written, tmp_path: Path) -> None:
    full = {
        "logprobs": [-0.25],
        "logprobs_mode": "processed_logprobs",
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
    }
    full |= {"policy": "someone", "seed": 9, "answer": "2", "finish_reason": "stop", "reward_part": 1.0, "engine": "theirs"}
    failed = {"status": "engine_error", "error": "it broke", "reward": None}
    first = bring(written([_row(1, 1, **full), _row(1, 2, **failed)]), form="plain", model=None)
    (tmp_path / "out").mkdir()
    write_dataset(first, tmp_path / "out", None)
    again = bring(tmp_path / "out" / "data" / "part-00000.parquet", model=None)
    one, other = (pl.read_parquet(artifact.tables("rollouts")).drop("group_id") for artifact in (first, again))
    assert one.equals(other)


def test_bad_rows_can_be_refused(bring: Bring, written: Written) -> None:
    path = written([_row(1, 1), "not json"])
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: not valid JSON.*\n.*leave out --bad-rows refuse"):
        bring(path, form="plain", model=None, bad_rows="refuse")
    with pytest.raises(DataError, match="No row could be read at all: expected JSON objects, one a line"):
        bring(written(["[1]"], "other.jsonl"), form="plain", model=None)
    with pytest.raises(DataError, match="no completions in it"):
        bring(written([], "empty.jsonl"), form="plain", model=None)


def test_where_no_row_fits_their_columns_and_the_format_that_has_them_are_named(bring: Bring, written: Written) -> None:
    """Rows as TRL logs them, read as something else; and rows that nothing writes."""
    trl = {"step": 1, "prompt": "a", "completion": "b", "advantage": 0.5}
    told = r"The first rows have the columns advantage, completion, prompt, step: by these they are --format trl$"
    with pytest.raises(DataError, match=told):
        bring(written([trl]), form="preference", model=None)
    told = (
        r"The first rows have the columns answer_text, q; preference has chosen, rejected\. "
        r"No other format has these: name them, --format plain --map prompt=\.\.\. --map completion=\.\.\.$"
    )
    with pytest.raises(DataError, match=told):
        bring(written([{"q": "a", "answer_text": "b"}], "own.jsonl"), form="preference", model=None)
    with pytest.raises(DataError, match=r"columns chosen, rejected, as preference has them: mend what the lines above say$"):
        bring(written([{"chosen": 1, "rejected": 2}], "bad.jsonl"), form="preference", model=None)


def test_text_without_a_tokenizer_is_refused_with_the_remedy(bring: Bring, written: Written) -> None:
    with pytest.raises(UserError, match="--model DIRECTORY"):
        bring(written([{"prompt": "a", "completion": "b"}]), form="plain", model=None)


def test_a_directory_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for name in ("step10.jsonl", "step2.jsonl", "notes.txt"):
        (tmp_path / name).write_text("", encoding="utf-8")
    files = source_files([tmp_path])
    assert names_of(files) == ["step2.jsonl", "step10.jsonl"]
    with pytest.raises(UserError, match="named twice"):
        source_files([tmp_path, files[0]])


def test_a_file_that_is_reached_by_two_names_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (file := tmp_path / "folder" / "x.jsonl").write_text("", encoding="utf-8")
    (link := tmp_path / "folder" / "y.jsonl").symlink_to(file)
    (tmp_path / "same").symlink_to(tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^{file}: named twice$"):
        source_files([file, file])
    for other in (link, tmp_path / "same" / "x.jsonl", Path("folder/../folder/x.jsonl"), Path("folder/x.jsonl")):
        with pytest.raises(UserError, match=f"^{other}: named twice, also as {file}$"):
            source_files([file, other])


def test_a_prompt_without_tokens_is_set_aside_as_one_without_text_is(bring: Bring, written: Written) -> None:
    empty = [_row(1, 2, prompt_tokens=[]), {**_row(1, 3, prompt_tokens=[]), "prompt": None}]
    artifact = bring(written([_row(1, 1), *empty]), form="plain", model=None)
    assert pl.read_parquet(artifact.tables("rollouts"))["completion_text"].to_list() == ["c1"]
    assert pl.read_parquet(artifact.tables("setaside"))["why"].to_list() == ["the prompt has no tokens"] * 2


def test_groups_whose_names_would_be_alike_stay_two(bring: Bring, written: Written) -> None:
    rows = [
        _row(place, place, prompt_id=prompt, group=group)
        for place, (prompt, group) in enumerate((("q", 1), ("q", 2), ("q#1", 3)))
    ]
    artifact = bring(written([row for row in rows for _ in range(2)]), form="plain", model=None)
    groups = pl.read_parquet(artifact.tables("rollouts")).group_by("group_id", maintain_order=True).agg("sample_index")
    assert [name.partition("@")[0] for name in groups["group_id"]] == ["q", "q#1", "q#1#1"]
    assert groups["sample_index"].to_list() == [[0, 1]] * 3


def test_files_with_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    assert names_of([tmp_path / "a" / "x.jsonl", tmp_path / "b" / "x.jsonl"]) == ["a/x.jsonl", "b/x.jsonl"]


def test_an_unknown_format_is_answered_with_the_known_ones(bring: Bring, written: Written) -> None:
    with pytest.raises(UserError, match=r"known by its columns \(a\)(.|\n)*open-instruct(.|\n)*--format plain"):
        bring(written([{"a": 1}]))


def test_a_damaged_parquet_file_is_one_answer(bring: Bring, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="cannot be read"):
        bring(tmp_path / "x.parquet", form="plain")


def test_missing_logprobs_are_filled_in_and_known_ones_stay(bring: Bring, written: Written, store: Store) -> None:
    known = {"logprobs": [-3.0], "logprobs_mode": "processed_logprobs"}
    rows = [_row(1, 1), _row(1, 2, **known), _row(1, 3, logprobs=[-4.0]), _row(1, 4, completion_tokens=[])]
    rollouts = bring(written(rows), form="plain", model=None)
    assert missing(rollouts) == 3
    frame = pl.read_parquet(rollouts.tables("rollouts"))
    some = frame.filter(pl.col("completion_token_ids").list.len() > 0)
    scores = some.select("group_id", "sample_index", logprobs=pl.lit([-0.5], pl.List(pl.Float32)))
    result = filled(frame, scores).sort("sample_index")
    assert result["behavior_logprobs"].to_list() == [[-0.5], [-3.0], [-0.5], []]
    assert result["logprobs_mode"].to_list() == ["scored", "processed_logprobs", "scored", "scored"]
    with pytest.raises(UserError, match="not those of these rollouts"):
        filled(frame, scores.head(1))
    with store.work(Request("scores", "score/1", {}, (rollouts.as_parent("rollouts"),))) as work:
        assert isinstance(work, Work)
        work.write_table("part-00000.parquet", scores, Scores)
        scored = work.finish({})
    with store.work(Request("checkpoint", "import/1", {})) as work:
        assert isinstance(work, Work)
        checkpoint = work.finish({"iteration": 0})
    made = with_scores(store, rollouts, scored, checkpoint)
    assert [(parent.role, parent.id) for parent in made.manifest.content.parents] == [
        ("rollouts", rollouts.id),
        ("scores", scored.id),
        ("scored_by", checkpoint.id),
    ]
    assert made.recipe["logprobs"] == {"mode": "scored", "checkpoint": checkpoint.id}
    assert (made.summary["scored"], made.summary["without_logprobs"]) == (3, 0)
    assert missing(made) == 0


def test_files_carry_the_descriptions_of_their_columns(bring: Bring, written: Written) -> None:
    artifact = bring(written([_row(1, 1)]), form="plain", model=None)
    schema = pq.read_schema(artifact.tables("origins")[0])
    assert schema.metadata[b"rollbook.table"] == b"origins" and b"description" in (schema.field("rest").metadata or {})
    assert not Rollouts.check(pl.read_parquet(artifact.tables("rollouts"))).bad.height
    assert json.loads((artifact.path / "manifest.json").read_text(encoding="utf-8"))["content"]["recipe"]["format"] == "plain"


def test_an_import_into_a_store_named_like_a_pattern_reads_its_own_rows(written: Written, tmp_path: Path) -> None:
    for name, prompt in (("runs1", 1), ("runs[1]", 2)):
        order = order_of((written([_row(prompt, 1)], f"{prompt}.jsonl"),), "plain")
        artifact, _ = import_rollouts(Store(tmp_path / name), order)
        rows = pl.concat([pl.read_parquet(path, glob=False) for path in artifact.tables("rollouts")])
        assert rows["prompt_text"].to_list() == [f"p{prompt}"] and artifact.summary["completions"] == 1
