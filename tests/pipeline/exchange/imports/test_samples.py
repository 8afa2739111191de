"""Files of other tools, as their own writers made them: groups, rewards, masks, tokens and logprobs as the tool meant them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.common.errors import DataError, UserError
from pipeline.store import Artifact

Bring = Callable[..., Artifact]
FIXTURES = Path(__file__).parent / "fixtures"
END = 1
"""The end token of the demo's tokenizer."""


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    tables = (pl.concat([pl.read_parquet(path) for path in artifact.tables(kind)]) for kind in ("rollouts", "origins"))
    rollouts, origins = tables
    return rollouts.join(origins, on=["group_id", "sample_index"], maintain_order="left").to_dicts()


def groups_of(artifact: Artifact) -> list[list[Any]]:
    """Rewards of each group, in the order of the file."""
    frame = pl.concat([pl.read_parquet(path) for path in artifact.tables("rollouts")])
    return [rewards for _, rewards in frame.group_by("group_id", maintain_order=True).agg("reward").iter_rows()]


def aside_of(artifact: Artifact) -> list[tuple[str, str]]:
    return [row[:2] for path in artifact.tables("setaside") for row in pl.read_parquet(path).iter_rows()]


def remarks_of(artifact: Artifact) -> list[str]:
    return list(artifact.manifest.provenance.notes.get("remarks", []))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_verl_groups_are_told_by_the_uid_without_the_rows_own_numbers(bring: Bring) -> None:
    assert groups_of(bring(FIXTURES / "verl_v1")) == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_verl_references_that_are_lists_of_one_are_the_reference(bring: Bring) -> None:
    assert [row["answer"] for row in rows_of(bring(FIXTURES / "verl_lists"))] == ["19"] * 3 + ["7"] * 3


def test_nemo_rl_rewards_of_dynamic_sampling_are_the_filtered_ones(bring: Bring) -> None:
    artifact = bring(FIXTURES / "nemo_rl_filtered", model=None)
    assert groups_of(artifact) == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    assert json.loads(rows_of(artifact)[0]["rest"])["rewards"] == 0.0


@pytest.mark.parametrize(("folder", "groups"), [("trl_extra", 4), ("trl_messages", 2)])
def test_trl_columns_that_users_log_are_no_rewards_and_weights_are_told_by_advantages(
    bring: Bring, folder: str, groups: int
) -> None:
    artifact = bring(FIXTURES / folder)
    assert artifact.summary["groups"] == groups
    for row in rows_of(artifact):
        assert row["reward"] == pytest.approx(row["reward_correct"] + 0.5 * row["reward_brevity"])
        assert json.loads(row["rest"])["answer_len"] > 0
    assert remarks_of(artifact)[0].startswith(
        "the reward is correct + 0.5 brevity, which gives the logged advantages; answer_len:"
    )


def test_trl_rewards_that_are_named_are_taken_as_they_are_weighed(bring: Bring) -> None:
    artifact = bring(FIXTURES / "trl_extra", options={"rewards": ("correct",)}, declared={"reward_weights": {"correct": 2.0}})
    assert {row["reward"] for row in rows_of(artifact)} == {0.0, 2.0} and not remarks_of(artifact)


def test_open_instruct_takes_references_from_lists_and_the_model_from_the_file_beside(bring: Bring) -> None:
    rows = rows_of(bring(FIXTURES / "open_instruct_run"))
    assert len(rows) == 3
    assert {(row["answer"], row["policy_id"]) for row in rows} == {("19", "allenai/Olmo-3-7B")}


def test_openai_failed_lines_and_refusals_say_why(bring: Bring) -> None:
    with pytest.raises(DataError) as caught:
        bring(FIXTURES / "openai_edge")
    told = str(caught.value)
    assert "line 5: column error: the request failed: batch_expired This request could not be executed" in told
    assert "line 6: column response: the model refused: 'I cannot'" in told
    assert "line 4: the completion has reasoning apart from its text" in told


def test_atropos_masks_and_logprobs_are_of_the_drawn_tokens(bring: Bring) -> None:
    artifact = bring(FIXTURES / "atropos")
    assert groups_of(artifact) == [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], groups_of(artifact)[2]]
    first = lines_of(FIXTURES / "atropos" / "groups.jsonl")[0]
    row = rows_of(artifact)[0]
    assert row["prompt_token_ids"] == first["tokens"][0][:6] and row["completion_token_ids"] == first["tokens"][0][6:]
    assert np.allclose(row["behavior_logprobs"], first["inference_logprobs"][0][6:]) and max(row["behavior_logprobs"]) < 0
    assert row["action_mask"] is None


def test_verifiers_traces_come_leaf_by_leaf_with_a_tools_tokens_masked(bring: Bring) -> None:
    artifact = bring(FIXTURES / "verifiers" / "traces_tokens.jsonl")
    assert groups_of(artifact) == [[1.125, 0.125], [1.125, 0.125]]
    rows = rows_of(artifact)
    assert (rows[0]["reward_correct"], rows[0]["reward_brevity"], rows[0]["answer"]) == (1.0, 0.25, "19")
    assert rows[0]["action_mask"] is None and rows[0]["policy_id"] == "mock" and rows[0]["temperature"] == 1.0
    mask = rows[1]["action_mask"]
    assert mask == [True] * 10 + [False] * 9 + [True] * 5
    assert [value == 0 for value in rows[1]["behavior_logprobs"]] == [not own for own in mask]
    assert any("rounded to 4 decimals" in remark for remark in remarks_of(artifact))


def test_verifiers_traces_without_tokens_are_made_from_their_messages(bring: Bring) -> None:
    rows = rows_of(bring(FIXTURES / "verifiers" / "traces.jsonl"))
    assert [(row["prompt_text"], row["completion_text"]) for row in rows] == [
        ("20+21", "20+21=41 A:41"),
        ("12+7", "12+7=21 A:21"),
    ]
    assert {row["tokens"] for row in rows} == {"retokenized"}
    assert all(row["completion_token_ids"][-1] == END for row in rows)


def test_prime_rl_folders_of_which_one_holds_the_other_are_refused(bring: Bring, tmp_path: Path) -> None:
    text = (FIXTURES / "verifiers" / "traces_tokens.jsonl").read_text(encoding="utf-8")
    files = [tmp_path / kind / "traces.jsonl" for kind in ("all", "effective")]
    for file in files:
        file.parent.mkdir()
        file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="would come in twice"):
        bring(*files)


def test_verifiers_results_have_their_trajectorys_tokens(bring: Bring) -> None:
    rows = rows_of(bring(FIXTURES / "verifiers_0_1"))
    said = lines_of(FIXTURES / "verifiers_0_1" / "results.jsonl")
    for row, line in zip(rows, said, strict=True):
        tokens = line["trajectory"][0]["tokens"]
        assert (row["prompt_token_ids"], row["completion_token_ids"]) == (tokens["prompt_ids"], tokens["completion_ids"])
        assert np.allclose(row["behavior_logprobs"], tokens["completion_logprobs"])
        assert (row["reward"], row["policy_id"], row["temperature"]) == (line["reward"], "mock", 1.0)


def test_verifiers_results_of_several_turns_are_one_completion_with_a_mask(bring: Bring, written: Callable[..., Path]) -> None:
    line = lines_of(FIXTURES / "verifiers_0_1" / "results.jsonl")[0]
    first = line["trajectory"][0]
    ids = first["tokens"]["prompt_ids"] + first["tokens"]["completion_ids"]
    second = {
        "prompt_ids": [*ids, 5, 6],
        "completion_ids": [7, 1],
        "completion_logprobs": [-0.5, -0.25],
        "completion_mask": [1, 1],
    }
    other = {"prompt_ids": [9], "completion_ids": [8], "completion_logprobs": [-1.0], "completion_mask": [1]}
    line["trajectory"] += [{**first, "tokens": second}, {**first, "tokens": other}]
    whole, apart = rows_of(bring(written([line])))
    assert whole["completion_token_ids"] == [*first["tokens"]["completion_ids"], 5, 6, 7, 1]
    assert whole["action_mask"] == [True] * 13 + [False] * 2 + [True] * 2
    assert whole["behavior_logprobs"][-4:] == [0.0, 0.0, -0.5, -0.25]
    assert (apart["prompt_token_ids"], apart["completion_token_ids"], apart["reward"]) == ([9], [8], line["reward"])


def test_verifiers_results_without_tokens_have_their_texts(bring: Bring, written: Callable[..., Path]) -> None:
    line = lines_of(FIXTURES / "verifiers_0_1" / "results.jsonl")[0]
    del line["trajectory"]
    (row,) = rows_of(bring(written([line])))
    assert (row["prompt_text"], row["completion_text"], row["finish_reason"]) == ("12+7", "12+7=19 A:19", "stop")
    assert row["completion_token_ids"][-1] == END


def test_lm_eval_repeats_are_completions_once_and_have_no_metric_of_their_own(bring: Bring) -> None:
    artifact = bring(FIXTURES / "lm_eval" / "samples_sums_hf.jsonl")
    assert groups_of(artifact) == [[None] * 3] * 3
    row = rows_of(artifact)[0]
    assert (row["prompt_text"], row["completion_text"], row["answer"], row["temperature"]) == ("Q:12+7=", " A:23", "19", 1.0)
    assert len(remarks_of(artifact)) == 2


def test_lm_eval_one_answers_metric_is_its_reward(bring: Bring, written: Callable[..., Path]) -> None:
    line = lines_of(FIXTURES / "lm_eval" / "samples_sums_hf.jsonl")[0]
    line |= {"resps": [["A:19"]], "exact_match": 1.0}
    (row,) = rows_of(bring(written([line])))
    assert (row["reward"], row["reward_exact_match"]) == (1.0, 1.0)


def test_lm_eval_multiple_choice_is_refused(bring: Bring) -> None:
    with pytest.raises(DataError, match="loglikelihoods of given answers, and no completions"):
        bring(FIXTURES / "lm_eval" / "samples_sums_mc.jsonl")


def test_inspect_scores_are_numbers_and_logprobs_are_aligned(bring: Bring) -> None:
    artifact = bring(FIXTURES / "inspect_ai" / "sums.json")
    assert groups_of(artifact) == [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]
    row = rows_of(artifact)[0]
    assert row["reward_brevity"] == pytest.approx(1 / 13) and row["reward_match"] == 0.0
    assert (row["answer"], row["policy_id"], row["temperature"]) == ("19", "openai-api/mock/mock", 1.0)
    assert row["behavior_logprobs"] == pytest.approx(
        [-0.4206, -0.9177, -0.5016, -0.5318, -0.5235, -0.0187, -0.4401, -0.1831, -0.0039, -0.7992, -0.1723, -0.4735, -0.7252]
    )


def test_art_keeps_the_choices_tokens_and_a_reward_of_zero(bring: Bring) -> None:
    artifact = bring(FIXTURES / "art")
    assert [rewards[:2] for rewards in groups_of(artifact)] == [[0.0, 1.0], [1.0, 1.0]]
    row = rows_of(artifact)[0]
    assert row["completion_token_ids"] == [19, 20, 13, 25, 31, 20, 20, 223, 35, 28, 20, 20, 1]
    assert row["behavior_logprobs"][0] == pytest.approx(-0.6212) and row["prompt_text"] == "sum\n12+7"
    assert all("no chat template" in why for _, why in aside_of(artifact)) and len(aside_of(artifact)) == 2


def test_skyrl_end_tokens_in_texts_are_one_and_means_are_passed_over(bring: Bring) -> None:
    artifact = bring(FIXTURES / "skyrl")
    assert groups_of(artifact) == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    rows = rows_of(artifact)
    assert all(row["completion_token_ids"].count(END) == 1 and row["completion_token_ids"][-1] == END for row in rows)
    assert (rows[0]["completion_text"], rows[0]["answer"], rows[1]["finish_reason"]) == ("12+7=19 A:19", "19", "length")


def test_skyrl_rewards_of_tokens_are_summed(bring: Bring, written: Callable[..., Path]) -> None:
    line = lines_of(FIXTURES / "skyrl" / "sums_test.jsonl")[0] | {"score": [0.0, 0.25, 0.5]}
    (row,) = rows_of(bring(written([line])))
    assert row["reward"] == 0.75 and json.loads(row["rest"])["score"] == [0.0, 0.25, 0.5]


def test_skyrl_means_alone_are_refused_by_name(bring: Bring, tmp_path: Path) -> None:
    (tmp_path / "aggregated_results.jsonl").write_text('{"eval/all/avg_score": 0.33}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"aggregated_results\.jsonl, which holds no completions"):
        bring(tmp_path)


def test_llamafactory_predictions_have_references_and_no_rewards(bring: Bring) -> None:
    rows = rows_of(bring(FIXTURES / "llamafactory"))
    assert [(row["prompt_text"], row["completion_text"], row["answer"], row["reward"]) for row in rows] == [
        ("Q:12+7=", "A:19", "19", None),
        ("Q:3+4=", "A:7", "7", None),
    ]


def test_ms_swift_steps_are_lists_and_rewards_stand_before_the_advantages(bring: Bring) -> None:
    artifact = bring(FIXTURES / "ms_swift" / "completions.jsonl")
    assert groups_of(artifact) == [[2.0, 1.0, 1.0]] * 4
    row = rows_of(artifact)[0]
    assert (row["reward_MathAccuracy"], row["reward_Format"], row["answer"]) == (1.0, 1.0, "19")


def test_ms_swift_answers_do_not_leak_into_their_prompts(bring: Bring) -> None:
    rows = rows_of(bring(FIXTURES / "ms_swift" / "infer_result.jsonl"))
    assert [(row["prompt_text"], row["completion_text"]) for row in rows] == [("12+7", "12+7=19 A:19"), ("3+4", "3+4=7 A:7")]


def test_trinity_groups_are_the_tasks_of_a_batch(bring: Bring) -> None:
    artifact = bring(FIXTURES / "trinity")
    assert groups_of(artifact) == [[1.0, 0.0]] * 4
    assert [place for place, _ in aside_of(artifact)] == ["experience.jsonl, line 9"]


def test_preferences_are_two_rows_a_pair(bring: Bring) -> None:
    scored = bring(FIXTURES / "preference" / "train_prefs.parquet")
    assert groups_of(scored) == [[8.0, 3.0], [7.0, 2.5]]
    assert [(row["prompt_id"], row["completion_text"]) for row in rows_of(scored)][:2] == [("h1", "A:19"), ("h1", "A:20")]
    declared = bring(FIXTURES / "preference" / "hh_strings.jsonl")
    assert groups_of(declared) == [[1.0, 0.0], [1.0, 0.0]]
    row = rows_of(declared)[0]
    assert (row["prompt_text"], row["completion_text"]) == ("\n\nHuman: 12+7\n\nAssistant:", " A:19")
    assert row["completion_token_ids"][-1] == END
    assert any("declared" in remark for remark in remarks_of(declared))


def test_wide_rows_are_a_completion_a_generation(bring: Bring) -> None:
    artifact = bring(FIXTURES / "openr1")
    assert groups_of(artifact) == [[1.0, 0.0], [1.0, 0.0]]
    rows = rows_of(artifact)
    assert [row["finish_reason"] for row in rows] == [None, None, "stop", "length"]
    assert [row["prompt_id"] for row in rows] == ["u1", "u1", "u2", "u2"]
    assert [row["reward_correctness_llama"] for row in rows] == [None, None, 1.0, 0.0]


def test_lighteval_tokens_come_without_what_fills_them_up(bring: Bring) -> None:
    artifact = bring(FIXTURES / "lighteval")
    assert groups_of(artifact) == [[None] * 4] * 3
    row = rows_of(artifact)[1]
    assert row["prompt_token_ids"] == [51, 28, 21, 13, 22, 31]
    assert row["completion_token_ids"] == [223, 35, 28, 19, 24, END] and row["answer"] == "7"
