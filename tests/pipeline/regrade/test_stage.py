"""Stored completions graded anew: what generation would have made, or an artifact of its own; never a second generation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.common.errors import DataError, IntegrityError, UserError
from pipeline.config.reward import RewardConfig
from pipeline.generate.siblings import find_sibling
from pipeline.regrade.plan import grade_request, job_of
from pipeline.store import Artifact, Request, Store, Work
from schemas import Rollouts

Generate = Callable[..., Artifact]
Wanted = Callable[..., Request]
Grading = Any


def reward_of(grader: str, workers: int = 1, **args: Any) -> RewardConfig:
    return RewardConfig.model_validate({"components": [{"grader": grader, "args": args}], "workers": workers})


def rows_of(artifact: Artifact) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in artifact.tables("rollouts")])


A = reward_of("exact_match")
B = reward_of("regex", pattern="^(.b)$", workers=2)


def job(request: Request, source: Artifact, prompts: Artifact | None) -> dict[str, Any]:
    return {"request": request.to_json(), "rollouts": str(source.path), "prompts": str(prompts.path) if prompts else None}


def test_grading_makes_the_artifact_that_generation_would_make(
    generate: Generate, wanted: Wanted, grading: Grading, store: Store, prompts: Artifact, tmp_path: Path
) -> None:
    direct = generate(B, Store(tmp_path / "other"))
    stored = generate(A)
    (made,) = grading(store, B, job(wanted(B), stored, prompts))
    assert made.id == direct.id != stored.id
    assert made.path == store.path_of(wanted(B))
    for name in ("part-00000.parquet", "part-00001.parquet", "part-00002.parquet"):
        assert (made.path / name).read_bytes() == (direct.path / name).read_bytes()
    assert made.manifest.provenance.notes["graded_from"]["id"] == stored.id
    rows = rows_of(made)
    assert rows["group_id"].str.ends_with(f"@{wanted(B).key[:8]}").all()
    assert rows["status"].to_list()[:3] == ["ok", "truncated", "ok"] and rows["status"][-1] == "engine_error"
    assert rows["reward"][-1] is None and rows["error"][-1] == "the engine ended it with 'abort'"
    made.verify()


@pytest.mark.parametrize("with_prompts", [True, False])
def test_prompts_that_a_grader_cannot_score_are_refused_before_any_is_graded(
    generate: Generate, wanted: Wanted, grading: Grading, store: Store, prompts: Artifact, with_prompts: bool
) -> None:
    gym, stored = reward_of("reasoning_gym"), generate(A)
    with pytest.raises(DataError, match=r"reward\.components\.0 \(reasoning_gym\): prompts that reasoning_gym cannot score:\n"):
        grading(store, gym, job(wanted(gym), stored, prompts if with_prompts else None))
    assert not list(store.path_of(wanted(gym)).glob("part-*.parquet"))


def test_a_failed_grading_is_mended_without_generation(
    generate: Generate, wanted: Wanted, grading: Grading, store: Store, prompts: Artifact, tmp_path: Path
) -> None:
    """Rows that no grader could grade are graded by the next one, as if they had never failed."""
    (tmp_path / "labels.jsonl").write_text('{"prompt_id": "p0", "sample_index": 0, "reward": 1}\n', encoding="utf-8")
    stored = generate(reward_of("from_file", path=str(tmp_path / "labels.jsonl")))
    assert stored.summary["statuses"]["reward_error"] > 0
    (made,) = grading(store, A, job(wanted(A), stored, prompts))
    assert made.id == generate(A, Store(tmp_path / "other")).id


def test_a_sibling_differs_in_its_graders_alone(generate: Generate, wanted: Wanted, store: Store) -> None:
    stored = generate(A)
    found = find_sibling(store, wanted(B))
    assert found is not None and found.id == stored.id
    assert find_sibling(store, wanted(B, purpose="sampled")) is None
    other = Request("rollouts", "generate/2", wanted(B).recipe, wanted(B).parents)
    assert find_sibling(store, other) is None
    (store.root / "rollouts" / "damaged").mkdir()
    (store.root / "rollouts" / "damaged" / "manifest.json").write_text("{", encoding="utf-8")
    assert find_sibling(store, wanted(B)) is not None


def test_a_sibling_is_found_in_a_bucket(bucket: Any, make_artifact: Callable[..., Artifact]) -> None:
    store = Store(bucket.url)
    request = Request("rollouts", "generate/1", {"samples": 1, "reward": ["a"]})
    with store.work(request) as work:
        made = work.finish({})  # type: ignore[union-attr]
    found = find_sibling(store, Request("rollouts", "generate/1", {"samples": 1, "reward": ["b"]}))
    assert found is not None and found.id == made.id


def test_what_is_asked_for_by_hand_has_the_graded_one_as_its_parent(
    generate: Generate, grading: Grading, store: Store, prompts: Artifact
) -> None:
    stored = generate(A)
    request = grade_request(stored, B)
    (made,) = grading(store, B, job_of(stored, request, [store]))
    assert [parent.role for parent in made.manifest.content.parents] == ["policy", "prompts", "graded"]
    assert made.parent("graded").id == stored.id
    assert made.recipe == {**stored.recipe, "reward": made.recipe["reward"]}
    assert "reward_exact_match" not in rows_of(made).columns and "reward_regex" in rows_of(made).columns
    same = [name for name in Rollouts.columns() if name not in ("group_id", "reward", "status", "error")]
    assert rows_of(made).select(same).equals(rows_of(stored).select(same))
    again = grade_request(made, A)
    assert [parent.role for parent in again.parents] == ["policy", "prompts", "graded"]


def test_a_killed_grading_goes_on_and_ends_with_the_same_bytes(
    generate: Generate, grading: Grading, store: Store, tmp_path: Path, prompts: Artifact
) -> None:
    stored = generate(A)
    request = grade_request(stored, B)
    (whole,) = grading(Store(tmp_path / "other"), B, job(request, stored, prompts))
    place = store.path_of(request)
    place.mkdir(parents=True)
    first = place / "part-00000.parquet"
    first.write_bytes((whole.path / first.name).read_bytes())
    (place / ".tmp-x-part-00001.parquet").write_bytes(b"half")
    before = first.stat().st_mtime_ns
    (made,) = grading(store, B, job(request, stored, prompts))
    assert made.id == whole.id and first.stat().st_mtime_ns == before
    last = [json.loads(line) for line in grading.events.splitlines() if "progress" in line][-1]
    assert (last["done"], last["total"]) == (9, 9)


def test_too_many_failures_stop_it_and_are_graded_again(
    generate: Generate, grading: Grading, store: Store, tmp_path: Path, prompts: Artifact
) -> None:
    stored = generate(A)
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"prompt_id": "p0", "sample_index": 0, "reward": 1}\n', encoding="utf-8")
    reward = reward_of("from_file", path=str(labels))
    request = grade_request(stored, reward)
    with pytest.raises(UserError, match=r"rewards failed, more than reward.max_failed_share=0.2. One of them: reward_from_file:"):
        grading(store, reward, job(request, stored, prompts))
    lenient = reward.model_copy(update={"max_failed_share": 1.0})
    (made,) = grading(store, lenient, job(request, stored, prompts))
    assert made.summary["statuses"] == {"engine_error": 1, "ok": 1, "reward_error": 13}
    failed = rows_of(made).filter(pl.col("status") == "reward_error")
    assert failed["error"][0] == "reward_from_file: labels.jsonl: no label with prompt_id p0, sample_index 1"


def test_rollouts_without_their_prompts_are_graded_by_what_their_rows_have(
    generate: Generate, grading: Grading, store: Store
) -> None:
    stored = generate(A)
    request = grade_request(stored, A)
    (made,) = grading(store, A, job(request, stored, None))
    assert rows_of(made)["reward"].to_list() == rows_of(stored)["reward"].to_list()


def test_damaged_rollouts_are_not_graded(generate: Generate, grading: Grading, store: Store, prompts: Artifact) -> None:
    stored = generate(A)
    path = stored.path / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="part-00001"):
        grading(store, B, job(grade_request(stored, B), stored, prompts))


def test_what_is_not_known_of_imported_completions_stays_told(grading: Grading, store: Store) -> None:
    """Shaping reads it to refuse before any work what needs logprobs."""
    types = {name: column.dtype for name, column in Rollouts.columns().items()}
    common = {"prompt_token_ids": [1], "completion_token_ids": [1], "prompt_text": "q", "policy_id": "p", "policy_version": 0}
    common |= {
        "source": "import",
        "logprobs_mode": "unknown",
        "engine": "none",
        "status": "reward_error",
        "error": "none",
        "prompt_id": "p",
    }
    rows = [{"group_id": "g", "sample_index": n, "completion_text": "ab", **common} for n in range(3)]
    with store.work(Request("rollouts", "import-rollouts/1", {})) as work:
        assert isinstance(work, Work)
        work.write_table("part-00000.parquet", pl.DataFrame(rows, schema=types), Rollouts)
        source = work.finish({"without_logprobs": 3, "without_reward": 3, "set_aside": 1})
    reward = A.model_copy(update={"max_failed_share": 1.0})
    (made,) = grading(store, reward, job(Request("rollouts", "grade/1", {}), source, None))
    assert {name: made.summary.get(name) for name in source.summary} == {
        "without_logprobs": 3,
        "without_reward": 3,
        "set_aside": None,
    }
