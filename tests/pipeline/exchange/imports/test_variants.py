"""What the tools' writers also write: other versions, options, containers, and rows that lack something."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.common.errors import DataError, UserError
from pipeline.exchange.imports.by_advantage import find_rewards
from pipeline.store import Artifact
from tests.pipeline.exchange.imports.test_samples import FIXTURES, aside_of, groups_of, lines_of, remarks_of, rows_of

Bring = Callable[..., Artifact]
PLAIN = FIXTURES / "plain" / "table.jsonl"


def _zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", _zstd), (".bz2", bz2.compress)])
def test_packed_lines_are_the_lines(bring: Bring, tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    lines = (FIXTURES / "verl" / "1.jsonl").read_bytes()
    half = lines.index(b"\n", len(lines) // 2) + 1
    place = tmp_path / "dumps"
    place.mkdir()
    (place / f"1.jsonl{ending}").write_bytes(pack(lines[:half]) + pack(lines[half:]))  # as `cat` joins two of them
    assert groups_of(bring(place)) == groups_of(bring(FIXTURES / "verl" / "1.jsonl"))
    (place / f"1.jsonl{ending}").write_bytes(pack(lines)[:-9])
    with pytest.raises(DataError, match=r"1\.jsonl\.\w+: cannot be read"):
        bring(place)


def test_other_endings_say_what_is_read(bring: Bring, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"a\.pkl: unknown kind of file; completions are read from \.jsonl.*packed as \.gz, \.zst"
    ):
        bring(tmp_path / "a.pkl")


def test_saved_data_sets_are_read_shard_by_shard(bring: Bring, tmp_path: Path) -> None:
    rows = lines_of(FIXTURES / "verl" / "1.jsonl")
    for number, part in enumerate((rows[:3], rows[3:])):
        table = pa.Table.from_pylist(part)
        with pa.ipc.new_stream(str(tmp_path / f"data-{number:05d}-of-00002.arrow"), table.schema) as out:
            out.write_table(table)
    (tmp_path / "dataset_info.json").write_text("{}", encoding="utf-8")
    assert groups_of(bring(tmp_path)) == groups_of(bring(FIXTURES / "verl" / "1.jsonl"))


def test_a_directory_of_directories_is_refused_with_one_of_them(bring: Bring, tmp_path: Path) -> None:
    (tmp_path / "env--model").mkdir()
    (tmp_path / "env--model" / "results.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"There is env--model/results\.jsonl: name the directories below"):
        bring(tmp_path)


def test_a_tables_tool_calls_have_their_own_arguments_alone(bring: Bring, tmp_path: Path) -> None:
    """Parquet gives each object of a column the names of all of them."""

    def row(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}
        asked = [{"role": "user", "content": "?"}, call, {"role": "tool", "content": "3"}]
        return {"prompt": asked, "completion": "A", "reward": 1.0, "group_id": name}

    rows = [row("add", {"a": 1, "b": 2}), row("find", {"text": "x", "deep": {"c": None, "d": 0}})]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    from pipeline.exchange.imports.read import read_rows

    found = [row.values["prompt"][1]["tool_calls"][0]["function"]["arguments"] for row in read_rows([tmp_path / "rows.parquet"])]  # type: ignore[union-attr]
    assert found == [{"a": 1, "b": 2}, {"text": "x", "deep": {"d": 0}}]


def test_trl_rewards_that_do_not_apply_are_nan_and_count_as_nothing() -> None:
    columns = {"right": [1.0, 0.0, float("nan"), None], "other": [0.0, 0.0, 1.0, 0.0]}
    told = find_rewards(["a"] * 4, columns, [0.5, -0.5, 0.5, -0.5])
    assert told.certain and told.weights == {"right": 1.0, "other": 1.0}


def test_verl_scores_that_are_nan_are_no_rewards(bring: Bring, written: Callable[..., Path]) -> None:
    line = lines_of(FIXTURES / "verl" / "1.jsonl")[0]
    rows = rows_of(bring(written([line, line | {"score": float("nan"), "output": "", "gts": None}])))
    assert [(row["reward"], row["status"]) for row in rows][1] == (None, "reward_error")
    assert rows[1]["completion_token_ids"] == [] and rows[1]["answer"] is None


def test_art_groups_of_jsonl_are_trajectories(bring: Bring, written: Callable[..., Path]) -> None:
    def trajectory(text: str, reward: float) -> dict[str, Any]:
        choice = {"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": text}}
        said = {"messages_and_choices": [{"role": "user", "content": "12+7"}, choice], "reward": reward}
        return {**said, "metrics": {"len": 4}, "metadata": {}, "tools": None, "additional_histories": [], "logs": []}

    none = {"messages_and_choices": [{"role": "user", "content": "12+7"}], "reward": 0.0}
    artifact = bring(written([{"trajectories": [trajectory("A:19", 1.0), trajectory("A:7", 0.0), none]}] * 2))
    assert groups_of(artifact) == [[1.0, 0.0], [1.0, 0.0]]
    row = rows_of(artifact)[0]
    assert (row["prompt_text"], row["completion_text"], row["finish_reason"]) == ("12+7", "A:19", "stop")
    assert [place for place, _ in aside_of(artifact)] == [f"rows.jsonl, line {line}, trajectory 2" for line in (1, 2)]


def test_nemo_rl_held_out_files_are_passed_over_and_masked_samples_remarked(bring: Bring, tmp_path: Path) -> None:
    lines = lines_of(FIXTURES / "nemo_rl" / "train_data_step1.jsonl")
    lines[0]["sample_loss_mask"] = [0.0]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "train_data_step1.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "val_data_step1.jsonl").write_text('{"content": [["q", "a"]], "rewards": [1.0], "idx": 0}\n', encoding="utf-8")
    artifact = bring(tmp_path)
    assert artifact.summary["completions"] == len(lines) and "set_aside" not in artifact.summary
    assert any("sample_loss_mask is 0" in remark for remark in remarks_of(artifact))


def test_lm_eval_chats_of_servers_are_lists_of_one_text(bring: Bring, written: Callable[..., Path]) -> None:
    line = lines_of(FIXTURES / "lm_eval" / "samples_sums_hf.jsonl")[0]
    chat = json.dumps([{"role": "user", "content": "12+7", "type": "text"}])
    line["arguments"]["gen_args_0"]["arg_0"] = [chat]
    assert {row["prompt_text"] for row in rows_of(bring(written([line])))} == {"12+7"}


def test_inspect_keeps_several_targets_and_says_shortly_why_a_sample_failed(bring: Bring, tmp_path: Path) -> None:
    log = json.loads((FIXTURES / "inspect_ai" / "sums.json").read_text(encoding="utf-8"))
    first, second = log["samples"][:2]
    first |= {"target": ["19", "XIX"], "events_data": {"messages": ["long"]}}
    second |= {"messages": second["messages"][:1], "error": {"message": "boom", "traceback": "..."}}
    (tmp_path / "log.json").write_text(json.dumps(log), encoding="utf-8")
    artifact = bring(tmp_path / "log.json")
    row = rows_of(artifact)[0]
    assert row["answer"] is None and json.loads(row["rest"])["target"] == ["19", "XIX"]
    assert "events_data" not in json.loads(row["rest"])
    assert aside_of(artifact) == [("log.json, sample 1", "column messages: no answer; boom")]


def test_verifiers_traces_of_other_models_are_set_aside(bring: Bring, written: Callable[..., Path]) -> None:
    lines = lines_of(FIXTURES / "verifiers" / "traces_tokens.jsonl")
    lines[0]["traces"][0].setdefault("agent", {}).update(trainable=False, name="judge")
    artifact = bring(written(lines))
    assert artifact.summary["completions"] == 3
    assert "'judge' is not trainable" in aside_of(artifact)[0][1]


def test_openai_bodies_of_responses_are_refused_by_name(bring: Bring, written: Callable[..., Path]) -> None:
    body = {"object": "response", "output": [{"type": "message"}]}
    with pytest.raises(DataError, match="of /v1/responses"):
        bring(written([{"request": {"input": "a"}, "response": {"status_code": 200, "body": body}}]))


def test_conversations_in_sharegpts_form_are_expert_answers(bring: Bring, written: Callable[..., Path]) -> None:
    said = [{"from": "system", "value": "sum"}, {"from": "human", "value": "12+7"}, {"from": "gpt", "value": "A:19"}]
    (row,) = rows_of(bring(written([{"conversations": said}]), form="expert"))
    assert (row["prompt_text"], row["completion_text"]) == ("sum\n12+7", "A:19")


def test_pairs_with_a_question_and_a_systems_text(bring: Bring, written: Callable[..., Path]) -> None:
    rows = rows_of(bring(written([{"system": "sum", "question": "12+7", "chosen": "A:19", "rejected": "A:20"}])))
    assert [(row["prompt_text"], row["completion_text"], row["reward"]) for row in rows] == [
        ("sum\n12+7", "A:19", 1.0),
        ("sum\n12+7", "A:20", 0.0),
    ]


def test_openai_results_may_be_named_before_their_requests(bring: Bring, tmp_path: Path) -> None:
    results, requests = (FIXTURES / "openai" / f"{name}.jsonl" for name in ("results", "requests"))
    assert rows_of(bring(results, requests)) == rows_of(bring(requests, results))
    with pytest.raises(DataError, match=r"among those named\. Name the requests' file too"):
        bring(results)


def test_lm_eval_metrics_of_a_whole_task_are_no_rewards(bring: Bring, written: Callable[..., Path]) -> None:
    """bleu, chrf and the like keep a reference and an answer a line, of which the task's figure is made."""
    line = lines_of(FIXTURES / "lm_eval" / "samples_sums_hf.jsonl")[0]
    line |= {"resps": [["A:19"]], "exact_match": 1.0, "bleu": ["19", "A:19"], "metrics": ["bleu", "exact_match"]}
    artifact = bring(written([line]))
    (row,) = rows_of(artifact)
    assert row["reward"] == 1.0 and json.loads(row["rest"])["bleu"] == ["19", "A:19"]
    assert remarks_of(artifact) == ["bleu: a metric of the whole task, which is no reward of an answer"]


def test_images_in_messages_are_refused_by_name(bring: Bring, written: Callable[..., Path]) -> None:
    shown = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, {"type": "text", "text": "how many?"}]
    row = {"prompt": [{"role": "user", "content": shown}], "completion": "3", "reward": 1.0, "group_id": "g"}
    plain = row | {"prompt": [{"role": "user", "content": shown[1:]}]}
    artifact = bring(written([row, plain]))
    assert [one["prompt_text"] for one in rows_of(artifact)] == ["how many?"]
    why = "column prompt: the content of message 0 has a part of type 'image_url'; texts alone are read"
    assert aside_of(artifact) == [("rows.jsonl, line 1", why)]


@pytest.mark.parametrize("name", ["verl/1.jsonl", "atropos/groups.jsonl", "skyrl/sums_test.jsonl", "verifiers/traces.jsonl"])
def test_line_ends_of_windows_marks_of_byte_order_and_blank_lines_change_nothing(bring: Bring, tmp_path: Path, name: str) -> None:
    source = FIXTURES / name
    place = tmp_path / source.name
    place.write_bytes(b"\xef\xbb\xbf" + source.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\n  \n")
    as_it_is, changed = ([row | {"group_id": ""} for row in rows_of(bring(path))] for path in (source, place))
    assert as_it_is == changed


def test_steps_may_be_texts(bring: Bring, tmp_path: Path) -> None:
    """TRL and verl wrote numbers so in some versions, and pandas does where one is missing."""
    table = pq.read_table(FIXTURES / "trl" / "completions_00001.parquet")
    steps = pa.array([str(step) for step in table["step"].to_pylist()])
    pq.write_table(table.set_column(table.schema.get_field_index("step"), "step", steps), tmp_path / "completions_00001.parquet")
    as_it_is, as_text = (groups_of(bring(path)) for path in (FIXTURES / "trl" / "completions_00001.parquet", tmp_path))
    assert as_it_is == as_text
    lines = [line | {"step": str(line["step"])} for line in lines_of(FIXTURES / "verl" / "1.jsonl")]
    (tmp_path / "verl").mkdir()
    (tmp_path / "verl" / "1.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    assert groups_of(bring(tmp_path / "verl")) == groups_of(bring(FIXTURES / "verl" / "1.jsonl"))


def test_openai_developers_messages_are_the_systems(bring: Bring, written: Callable[..., Path]) -> None:
    asked = [{"role": "developer", "content": "sum"}, {"role": "user", "content": [{"type": "text", "text": "2+2"}]}]
    choice = {"index": 0, "message": {"role": "assistant", "content": "A:4", "refusal": None}, "finish_reason": "stop"}
    row = {"request": {"model": "m", "messages": asked}, "response": {"model": "m", "choices": [choice]}}
    assert [one["prompt_text"] for one in rows_of(bring(written([row])))] == ["sum\n2+2"]
