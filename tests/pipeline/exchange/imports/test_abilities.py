"""What serves many formats: paths below columns, lists made to rows, sequences with a mask, and chats by their template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.common.errors import DataError, UserError
from pipeline.common.paths import at_path
from pipeline.exchange.imports.sequence import split
from pipeline.exchange.imports.turns import written_turns
from pipeline.exchange.imports.values import reference
from pipeline.store import Artifact

Bring = Callable[..., Artifact]
Written = Callable[..., Path]
BASE = Path(__file__).parents[4] / "data" / "base"
END = 1
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "A:{% if m.reasoning_content %}<{{ m.reasoning_content }}>{% endif %}{{ m.content }}<eos>;"
    "{% else %}{{ m.role[0] }}:{{ m.content }};{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)


@pytest.fixture
def chatty(tmp_path: Path) -> Path:
    """The demo's model with a chat template that writes reasoning, and a sign behind the end token."""
    shutil.copytree(BASE, tmp_path / "chatty")
    (tmp_path / "chatty" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return tmp_path / "chatty"


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    rollouts = pl.concat([pl.read_parquet(path) for path in artifact.tables("rollouts")])
    origins = pl.concat([pl.read_parquet(path) for path in artifact.tables("origins")])
    return rollouts.join(origins, on=["group_id", "sample_index"], maintain_order="left").to_dicts()


def aside_of(artifact: Artifact) -> list[str]:
    return [why for path in artifact.tables("setaside") for why in pl.read_parquet(path)["why"]]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def test_paths_lead_below_columns_through_lists_and_json_in_texts() -> None:
    row = {"metrics": {"acc": 0.5}, "a.b": 1, "choices": [{"text": "x"}], "packed": '{"score": 2}'}
    assert [at_path(row, path) for path in ("metrics.acc", "a.b", "choices.0.text", "packed.score")] == [0.5, 1, "x", 2]
    for path in ("metrics.other", "choices.1.text", "metrics.acc.more", "none"):
        with pytest.raises(KeyError):
            at_path(row, path)


def test_map_takes_paths(bring: Bring, written: Written) -> None:
    rows = [
        {"q": {"text": "1+1="}, "out": "2", "metrics": {"acc": 1.0, "f": 0.5}, "eid": {"batch": batch}} for batch in (1, 1, 2)
    ]
    columns = {"prompt": "q.text", "completion": "out", "reward": "metrics.acc", "group": "eid.batch"}
    artifact = bring(written(rows), form="plain", options={"columns": columns})
    assert artifact.summary["groups"] == 2
    assert [(row["prompt_text"], row["reward"]) for row in rows_of(artifact)] == [("1+1=", 1.0)] * 3
    missing = bring(
        written([*rows, {"q": {"text": "1"}, "out": "2", "eid": {"batch": 1}}], "b.jsonl"),
        options={"columns": columns},
        form="plain",
    )
    assert aside_of(missing) == ["column metrics.acc: missing, and --map reward=metrics.acc names it"]


def test_rewards_are_named_by_paths_too(bring: Bring, written: Written) -> None:
    row = {"prompt": "1+1=", "completion": "2", "metrics": {"acc": 1.0, "format": 0.5}}
    (found,) = rows_of(bring(written([row]), form="plain", options={"rewards": ("metrics.acc", "metrics.format")}))
    assert (found["reward"], found["reward_acc"], found["reward_format"]) == (1.5, 1.0, 0.5)


def test_aligned_lists_are_exploded_to_rows(bring: Bring, written: Written) -> None:
    rows: list[dict[str, Any]] = [
        {"problem": "1+1=", "generations": ["2", "3"], "right": [True, False], "judge": None, "answer": "2"},
        {"problem": "1+1=", "generations": ["2"], "right": [True], "judge": ["yes"], "answer": "2"},
        {"problem": "2+2=", "generations": ["4", "5"], "right": [True], "judge": None, "answer": "4"},
    ]
    columns = {"prompt": "problem", "completion": "generations", "reward": "right"}
    artifact = bring(written(rows), form="plain", options={"columns": columns, "explode": ("generations", "right", "judge")})
    assert artifact.recipe["explode"] == ["generations", "right", "judge"]
    found = rows_of(artifact)
    assert [(row["completion_text"], row["reward"], row["answer"]) for row in found] == [
        ("2", 1.0, "2"),
        ("3", 0.0, "2"),
        ("2", 1.0, "2"),
    ]
    assert artifact.summary["groups"] == 2  # a row's completions are a group, though two rows ask the same
    assert aside_of(artifact) == ["lists that are to be aligned differ in length: generations has 2, right has 1"]


def test_a_sequence_with_a_mask_is_a_prompt_and_a_completion_of_several_turns(bring: Bring, written: Written) -> None:
    row = {
        "input_ids": [31, 20, 40, 41, 50, 42],
        "loss_mask": [0, 0, 1, 1, 0, 1],
        "lp": [0.0, 0.0, -1.0, -2.0, 5.0, -3.0],
        "r": 1,
    }
    columns = {"tokens": "input_ids", "action_mask": "loss_mask", "logprobs": "lp", "reward": "r"}
    (found,) = rows_of(bring(written([row]), form="plain", options={"columns": columns}))
    assert (found["prompt_token_ids"], found["completion_token_ids"]) == ([31, 20], [40, 41, 50, 42])
    assert found["action_mask"] == [True, True, False, True]
    assert found["behavior_logprobs"] == [-1.0, -2.0, 0.0, -3.0]


def test_logprobs_may_be_of_all_tokens_of_the_completion_or_of_the_drawn_ones() -> None:
    ids, drawn = [1, 2, 3, 4], [False, True, False, True]
    for logprobs in ([9.0, -1.0, 9.0, -2.0], [-1.0, 9.0, -2.0], [-1.0, -2.0]):
        assert split(ids, drawn, logprobs)["logprobs"] == [-1.0, 0.0, -2.0]
    with pytest.raises(ValueError, match="has 5 logprobs for 2 tokens"):
        split(ids, drawn, [0.0] * 5)
    with pytest.raises(ValueError, match="not said where the completion starts"):
        split(ids, [False] * 4, None)


def test_references_in_lists_of_one_are_texts_and_others_are_not() -> None:
    assert [reference(value) for value in ("a", 3, 1.5, ["a"], [3], [["a"]])] == ["a", "3", "1.5", "a", "3", "a"]
    assert [reference(value) for value in (None, True, [], ["a", "b"], {"a": 1})] == [None] * 5


def test_expert_chats_keep_what_is_mapped(bring: Bring, written: Written, chatty: Path) -> None:
    row = {"messages": [user("1+1"), assistant("2")], "score": 0.75, "truth": "2", "id": "p1", "by": "teacher"}
    columns = {"reward": "score", "answer": "truth", "prompt_id": "id", "policy": "by"}
    (found,) = rows_of(bring(written([row]), form="expert", model=chatty, options={"columns": columns}))
    assert (found["reward"], found["answer"], found["prompt_id"], found["policy_id"]) == (0.75, "2", "p1", "teacher")
    assert (found["prompt_text"], found["completion_text"], found["source"]) == ("u:1+1;A:", "2", "expert")


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_written_by_the_template(bring: Bring, written: Written, chatty: Path, name: str) -> None:
    row = {"messages": [user("1+1"), assistant("2", **{name: "one more"})]}
    (found,) = rows_of(bring(written([row]), form="expert", model=chatty))
    assert (found["prompt_text"], found["completion_text"]) == ("u:1+1;A:", "<one more>2")
    assert found["completion_token_ids"].count(END) == 1 and found["completion_token_ids"][-1] == END


def test_reasoning_that_the_template_leaves_out_is_set_aside(bring: Bring, written: Written, chatty: Path) -> None:
    (chatty / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }};{% endfor %}", encoding="utf-8")
    rows = [{"messages": [user("1+1"), assistant("2", **more)]} for more in ({"thinking": "one more"}, {})]
    artifact = bring(written(rows), form="expert", model=chatty)
    assert [row["completion_text"] for row in rows_of(artifact)] == ["2"]
    assert "does not write the answer's reasoning" in aside_of(artifact)[0]
    with pytest.raises(DataError, match="reasoning apart from its text and no token ids"):
        bring(written(rows[:1], "b.jsonl"), form="expert")


def test_an_end_token_in_the_text_is_not_added_again(bring: Bring, written: Written) -> None:
    rows = [{"prompt": "1+1=", "completion": text, "finish_reason": "stop"} for text in ("2<eos>", "2")]
    for eos in ("auto", "always"):
        found = rows_of(bring(written(rows, f"{eos}.jsonl"), form="plain", rendering={"eos": eos}))
        assert [row["completion_token_ids"] for row in found] == [[20, END]] * 2
        assert [row["completion_text"] for row in found] == ["2"] * 2
    never = rows_of(bring(written(rows, "never.jsonl"), form="plain", rendering={"eos": "never"}))
    assert [row["completion_token_ids"] for row in never] == [[20, END], [20]]


def test_an_answer_at_the_end_of_a_prompts_messages_does_not_leak(bring: Bring, written: Written, chatty: Path) -> None:
    row = {"chat": [user("1+1"), assistant("2")], "out": "2", "reward": 1}
    (found,) = rows_of(
        bring(written([row]), form="plain", model=chatty, options={"columns": {"prompt": "chat", "completion": "out"}})
    )
    assert (found["prompt_text"], found["completion_text"]) == ("u:1+1;A:", "2")
    (alone,) = rows_of(bring(written([row], "b.jsonl"), form="plain", model=chatty, options={"columns": {"prompt": "chat"}}))
    assert (alone["prompt_text"], alone["completion_text"]) == ("u:1+1;A:", "2")


def test_dialogues_that_are_taken_for_a_part_of_one_are_refused(bring: Bring, written: Written) -> None:
    row = {"chosen": "\n\nHuman: 1+1\n\nAssistant: 2", "rejected": "\n\nHuman: 1+1\n\nAssistant: 3"}
    for columns in ({"prompt": "chosen", "completion": "rejected"}, {"prompt": "rejected", "completion": "chosen"}):
        with pytest.raises(DataError, match="is a dialogue of Human and Assistant turns"):
            bring(written([row]), form="plain", options={"columns": columns})
    with pytest.raises(UserError, match="named as the prompt and as the completion"):
        bring(written([row]), form="plain", options={"columns": {"prompt": "chosen", "completion": "chosen"}})


def test_turns_without_ids_are_written_by_the_template_and_masked(bring: Bring, written: Written, chatty: Path) -> None:
    turns = [assistant("3+"), {"role": "tool", "content": "4"}, assistant("7")]
    row = {"prompt": [user("1+1")], "completion": turns, "finish_reason": "stop", "reward": 1}
    (found,) = rows_of(bring(written([row]), form="plain", model=chatty))
    assert found["completion_text"] == "3+<eos>;t:4;A:7"
    ids, mask = found["completion_token_ids"], found["action_mask"]
    assert ids.count(END) == 2 and ids[-1] == END and mask[:3] == [True] * 3 and mask[-2:] == [True] * 2
    assert mask.count(False) == len(";t:4;A:")


def test_a_template_that_changes_earlier_turns_has_no_text_of_them_all(chatty: Path) -> None:
    def write(messages: list[dict[str, Any]], opened: bool) -> str:
        return f"{len(messages)}" + "".join(message["content"] for message in messages)

    with pytest.raises(ValueError, match="writes earlier turns anew"):
        written_turns(write, [user("a")], [assistant("b"), user("c"), assistant("d")], None, ended=True)


def test_a_chat_of_several_turns_needs_a_template(bring: Bring, written: Written) -> None:
    row = {"prompt": [user("1+1"), assistant("2"), user("2+2")], "completion": "4"}
    with pytest.raises(DataError, match="a chat of several turns, and the tokenizer of --model has no chat template"):
        bring(written([row]), form="plain")


def test_tool_calls_are_objects_for_the_template(bring: Bring, written: Written, chatty: Path) -> None:
    (chatty / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}[{{ c.function.arguments.a }}]{% endfor %};"
        "{% endfor %}",
        encoding="utf-8",
    )
    flat = {"id": "c", "type": "function", "name": "add", "arguments": '{"a": 5}'}
    nested = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 5}'}}
    for call in (flat, nested, json.dumps(flat)):
        turns = [assistant("", tool_calls=[call]), {"role": "tool", "content": "6"}, assistant("7")]
        row = {"prompt": [user("1+1")], "completion": turns, "reward": 1}
        (found,) = rows_of(bring(written([row], f"{len(str(call))}.jsonl"), form="plain", model=chatty))
        assert found["completion_text"].startswith("[5];6;7")
