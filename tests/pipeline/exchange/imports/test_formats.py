"""Every format: what its tool wrote comes back out of the rollouts, value by value, and what it does not say is marked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.exchange.imports.detect import formats
from pipeline.store import Artifact

Bring = Callable[..., Artifact]
Written = Callable[..., Path]
FIXTURES = Path(__file__).parent / "fixtures"
BASE = Path(__file__).parents[4] / "data" / "base"


def test_trl_rewards_texts_and_advantages_come_back_and_a_step_logged_again_is_set_aside(bring: Bring) -> None:
    artifact = bring(FIXTURES / "trl", declared={"reward_weights": {"brevity": 0.5}})
    steps = {step: pl.read_parquet(FIXTURES / "trl" / f"completions_0000{step}.parquet").to_dicts() for step in (1, 2, 3)}
    said = [row for step in (1, 3) for row in steps[step]]
    rows = rows_of(artifact)
    assert len(rows) == len(said) == 32
    for row, known in zip(rows, said, strict=True):
        assert (row["prompt_text"], row["completion_text"]) == (known["prompt"], known["completion"])
        assert (row["reward_correct"], row["reward_brevity"]) == (known["correct"], known["brevity"])
        assert row["reward"] == known["correct"] + 0.5 * known["brevity"]
        assert json.loads(row["rest"]) == {"step": known["step"], "advantage": known["advantage"]}
        assert row["tokens"] == "retokenized" and row["behavior_logprobs"] is None and row["logprobs_mode"] == "unknown"
        assert (row["temperature"], row["policy_id"], row["source"]) == (None, "unknown", "import")
    assert artifact.summary["groups"] == 8
    aside = pl.read_parquet(artifact.tables("setaside"))
    assert len(aside) == 16
    assert set(aside["why"]) == {"the same completions as at step 1, logged again"}


def test_trl_messages_need_a_chat_template(bring: Bring, tmp_path: Path) -> None:
    chats = FIXTURES / "trl_chat"
    model = _with_template(tmp_path / "model")
    rows, said = rows_of(bring(chats, model=model)), pl.read_parquet(chats / "completions_00001.parquet").to_dicts()
    assert [row["prompt_text"] for row in rows] == [f"Q:{known['prompt'][0]['content']}=" for known in said]
    assert [row["completion_text"] for row in rows] == [known["completion"][0]["content"] for known in said]
    (model / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}", encoding="utf-8")
    assert {row["prompt_text"] for row in rows_of(bring(chats, model=model))} == {"26 Jul 2024"}


def test_verl_scores_answers_and_extras_come_back(bring: Bring) -> None:
    rows, said = rows_of(bring(FIXTURES / "verl")), lines_of(FIXTURES / "verl" / "1.jsonl")
    for row, known in zip(rows, said, strict=True):
        assert (row["prompt_text"], row["completion_text"]) == (known["input"], known["output"])
        assert (row["reward"], row["answer"], row["engine"]) == (known["score"], known["gts"], "verl")
        assert json.loads(row["rest"]) == {"step": 1, "acc": known["acc"], "pred": known["pred"]}


def test_open_instruct_tokens_and_logprobs_come_back_exactly(bring: Bring) -> None:
    rows, said = rows_of(bring(FIXTURES / "open_instruct")), lines_of(FIXTURES / "open_instruct" / "run_rollouts_000000.jsonl")
    for row, known in zip(rows, said, strict=True):
        assert row["prompt_token_ids"] == known["prompt_tokens"]
        assert row["completion_token_ids"] == known["response_tokens"]
        assert row["behavior_logprobs"] == known["logprobs"]
        assert (row["reward"], row["finish_reason"], row["tokens"]) == (known["reward"], known["finish_reason"], "source")
        assert row["logprobs_mode"] == "unknown"
        rest = json.loads(row["rest"])
        assert {name: rest[name] for name in ("advantage", "ground_truth", "dataset")} == {
            name: known[name] for name in ("advantage", "ground_truth", "dataset")
        }
    assert [row["sample_index"] for row in rows] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_open_instruct_tool_calls_are_set_aside(bring: Bring, written: Written) -> None:
    first, *others = lines_of(FIXTURES / "open_instruct" / "run_rollouts_000000.jsonl")
    first["request_info"]["tool_calleds"] = True
    artifact = bring(written([first, *others]))
    assert artifact.summary["completions"] == 7
    assert "which tokens are the tool's" in pl.read_parquet(artifact.tables("setaside"))["why"][0]


def test_nemo_rl_needs_no_tokenizer_and_loses_only_its_padding(bring: Bring) -> None:
    rows = rows_of(bring(FIXTURES / "nemo_rl", model=None))
    for row, known in zip(rows, lines_of(FIXTURES / "nemo_rl" / "train_data_step1.jsonl"), strict=True):
        length, mask = known["input_lengths"][0], known["token_loss_mask"][0]
        start = mask.index(1)
        ids = known["token_ids"][0]
        assert (row["prompt_token_ids"], row["completion_token_ids"]) == (ids[:start], ids[start:length])
        assert row["behavior_logprobs"] == known["generation_logprobs"][0][start:length]
        assert row["action_mask"] is None
        assert [row["prompt_text"], row["completion_text"]] == known["content"][0]
        assert row["reward"] == known["rewards"][0]
        rest = json.loads(row["rest"])
        assert rest["prev_logprobs"] == known["prev_logprobs"][0]
        assert (rest["sample_loss_mask"], rest["idx"]) == (known["sample_loss_mask"][0], known["idx"])


def test_nemo_rl_tokens_of_an_environment_are_masked(bring: Bring, written: Written) -> None:
    row = lines_of(FIXTURES / "nemo_rl" / "train_data_step1.jsonl")[0]
    start = row["token_loss_mask"][0].index(1)
    row["token_loss_mask"][0][start + 1] = 0
    found = rows_of(bring(written([row])))[0]
    assert found["action_mask"] == [True, False] + [True] * (len(found["completion_token_ids"]) - 2)


def test_expert_answers_end_and_have_no_reward_unless_it_is_stated(bring: Bring) -> None:
    artifact = bring(FIXTURES / "expert" / "answers.jsonl", form="expert", rendering={"template": "Q:{question}="})
    row = rows_of(artifact)[0]
    assert (row["prompt_text"], row["completion_text"], row["source"]) == ("Q:1+1=", "1+1=2, A:2", "expert")
    assert row["completion_token_ids"][-1] == _tokenizer().eos_token_id
    assert (row["reward"], row["status"]) == (None, "reward_error") and "no reward" in row["error"]
    assert json.loads(row["rest"]) == {"level": 1}
    aside = pl.read_parquet(artifact.tables("setaside")).sort("place")
    assert aside["place"].to_list() == ["answers.jsonl, line 3", "answers.jsonl, line 4"]
    assert aside["why"][0].startswith("column solution: is null or missing")
    stated = bring(FIXTURES / "expert" / "answers.jsonl", form="expert", declared={"reward": 1.0})
    assert {row["reward"] for row in rows_of(stated)} == {1.0} and stated.recipe["declared"]["reward"] == 1.0


def test_expert_chats_end_with_the_answer(bring: Bring, tmp_path: Path) -> None:
    model = _with_template(tmp_path / "model")
    artifact = bring(FIXTURES / "expert" / "chats.jsonl", form="expert", model=model)
    (row,) = rows_of(artifact)
    assert (row["prompt_text"], row["completion_text"], json.loads(row["rest"])) == ("Q:1+1=", "A:2", {"by": "a teacher"})
    assert artifact.summary["set_aside"] == 1


def test_plain_columns_are_mapped_and_groups_gathered(bring: Bring) -> None:
    columns = {"prompt": "q", "completion": "out", "reward": "score", "temperature": "temp", "policy": "who"}
    artifact = bring(FIXTURES / "plain" / "table.jsonl", form="plain", options={"columns": columns})
    rows = rows_of(artifact)
    assert [(row["prompt_text"], row["completion_text"], row["sample_index"]) for row in rows] == [
        ("1+1", "A:2", 0),
        ("1+1", "A:3", 1),
        ("2+2", "A:5", 0),
    ]
    assert [row["number"] for row in rows] == [1, 3, 2]
    assert {(row["temperature"], row["policy_id"]) for row in rows} == {(0.8, "model-a")}
    assert pl.read_parquet(artifact.tables("setaside")).row(0)[:2] == (
        "table.jsonl, line 4",
        "column score: expected a number, found str 'high'",
    )


def test_openai_completions_keep_ids_where_the_server_gives_them(bring: Bring, written: Written) -> None:
    request = {"model": "m", "prompt": [31, 20], "temperature": 0.5, "top_p": 0.9, "top_k": -1, "seed": 4, "user": "someone"}
    texts = ["token_id:20", "token_id:31"]
    choice = {"index": 0, "text": "=1", "finish_reason": "length", "logprobs": {"tokens": texts, "token_logprobs": [-0.5, -1.25]}}
    artifact = bring(written([{"request": request, "response": {"id": "a", "model": "m-1", "choices": [choice]}, "at": 3}]))
    (row,) = rows_of(artifact)
    assert (row["prompt_token_ids"], row["completion_token_ids"], row["behavior_logprobs"]) == ([31, 20], [20, 31], [-0.5, -1.25])
    assert (row["temperature"], row["top_p"], row["top_k"], row["min_p"]) == (0.5, 0.9, 0, None)
    assert (row["policy_id"], row["finish_reason"], row["tokens"], row["seed"]) == ("m-1", "length", "source", None)
    rest = json.loads(row["rest"])
    assert (rest["request"]["seed"], rest["request"]["user"], rest["response"]["id"], rest["at"]) == (4, "someone", "a", 3)


def test_openai_logprobs_of_other_tokens_than_ours_are_kept_apart(bring: Bring, written: Written) -> None:
    def line(tokens: list[str]) -> dict[str, Any]:
        logprobs = {"tokens": tokens, "token_logprobs": [-0.5] * len(tokens)}
        choice = {"text": "".join(tokens), "finish_reason": "length", "logprobs": logprobs}
        return {"request": {"prompt": "1+1="}, "response": {"model": "m", "choices": [choice]}}

    tokenizer = _tokenizer()
    ours = [tokenizer.decode([token]) for token in tokenizer("12345", add_special_tokens=False)["input_ids"]]
    other = ["1", "2345"] if ours != ["1", "2345"] else ["12", "345"]
    same, different = rows_of(bring(written([line(ours), line(other)])))
    assert np.allclose(same["behavior_logprobs"], -0.5) and same["tokens"] == "retokenized"
    assert different["behavior_logprobs"] is None and json.loads(different["rest"])["logprobs"] == [-0.5, -0.5]


def test_a_template_that_begins_as_sequences_do_begins_once(
    bring: Bring, written: Written, save_tokenizer: Any, tmp_path: Path
) -> None:
    save_tokenizer(tmp_path / "model", "spaces", tokenizer_class="LlamaTokenizerFast")
    shutil.copyfile(BASE / "model.safetensors", tmp_path / "model" / "model.safetensors")
    rows = [{"prompt": "The answer", "completion": "31.", "reward": 1}]
    prompts = []
    for template in ("{question}", "<s>{question}"):
        artifact = bring(written(rows), form="plain", model=tmp_path / "model", rendering={"template": template})
        prompts.append(rows_of(artifact)[0]["prompt_token_ids"])
    assert [ids.count(0) for ids in prompts] == [1, 1] and all(ids[0] == 0 for ids in prompts)


def test_openai_one_tool_call_among_choices_costs_that_choice_only(bring: Bring, written: Written) -> None:
    def choice(text: str, **message: Any) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}

    call = choice("", tool_calls=[{"id": "a", "type": "function", "function": {"name": "add", "arguments": "{}"}}])
    request = {"prompt": "1+1="}
    lines = [
        {"request": request, "response": {"model": "m", "choices": [choice("2"), call, choice("3"), "none"]}},
        {"request": request, "response": {"model": "m", "choices": [call]}},
    ]
    artifact = bring(written(lines))
    assert [row["completion_text"] for row in rows_of(artifact)] == ["2", "3"]
    aside = pl.read_parquet(artifact.tables("setaside"))
    assert aside["place"].to_list() == ["rows.jsonl, line 1, choice 1", "rows.jsonl, line 1, choice 3", "rows.jsonl, line 2"]
    assert aside["why"].to_list() == [
        "column response: the answer calls a tool, and is no text",
        "column response: a choice that is no object",
        "column response: the answer calls a tool, and is no text",
    ]
    assert json.loads(aside["content"][0])["message"]["tool_calls"][0]["id"] == "a"


def test_openai_batch_results_find_their_requests_by_id(bring: Bring, tmp_path: Path) -> None:
    files = [FIXTURES / "openai" / name for name in ("requests.jsonl", "results.jsonl")]
    artifact = bring(*files, model=_with_template(tmp_path / "model"))
    bodies = [line["response"]["body"] for line in lines_of(files[1]) if line["response"]["body"]]
    choices = [(body, choice) for body in bodies for choice in body["choices"]]
    rows = rows_of(artifact)
    assert [row["tokens"] for row in rows] == ["source", "source", "retokenized", "retokenized"]
    for row, (body, choice) in zip(rows, choices, strict=True):
        if choice.get("token_ids"):
            assert row["prompt_token_ids"] == body["prompt_token_ids"]
            assert row["completion_token_ids"] == choice["token_ids"]
        said = [one["logprob"] for one in choice["logprobs"]["content"]]
        assert np.allclose(row["behavior_logprobs"], said, rtol=1e-6)
        assert (row["completion_text"], row["temperature"], row["policy_id"]) == (choice["message"]["content"], 0.7, "demo-base")
        assert json.loads(row["rest"])["request"]["seed"] in (5, 105)
    assert "maximum context length" in pl.read_parquet(artifact.tables("setaside"))["why"][0]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"completion_tokens": [1, 2], "logprobs": [-0.1]}, "has 1 logprobs for 2 completion tokens"),
        ({"completion_tokens": [1, -2]}, "column completion_tokens: value 1 is -2, expected a token id"),
        ({"completion_tokens": [1, 10**6]}, "outside the vocabulary"),
        ({"completion_tokens": [1], "logprobs": [0.5]}, "behavior_logprobs is above its maximum"),
        ({"completion_tokens": [1], "logprobs": [float("nan")]}, "expected a finite number"),
        ({"completion_tokens": [1], "reward": float("inf")}, "column reward: is inf"),
        ({"completion_tokens": [1], "seed": 2**70}, "seed is"),
        ({"completion_tokens": [1], "status": "great", "reward": 1}, "status is none of its allowed values"),
        ({}, "has no completion"),
    ],
)
def test_what_does_not_fit_is_set_aside_with_its_reason(bring: Bring, written: Written, row: dict[str, Any], why: str) -> None:
    good = {"prompt": "1+1", "completion_tokens": [20], "reward": 1}
    artifact = bring(written([good, {"prompt": "1+1", **row}]), form="plain")
    assert artifact.summary["completions"] == 1
    aside = pl.read_parquet(artifact.tables("setaside")).row(0, named=True)
    assert aside["place"] == "rows.jsonl, line 2" and why in aside["why"]


def _with_template(directory: Path) -> Path:
    """The base model with a chat template."""
    directory.mkdir()
    for path in BASE.iterdir():
        if path.suffix in (".json", ".safetensors"):
            shutil.copyfile(path, directory / path.name)
    template = "{% for message in messages %}{{ 'Q:' + message['content'] + '=' }}{% endfor %}"
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return directory


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE)


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    """Rows of the rollouts with those of their origins."""
    parts = [pl.read_parquet(artifact.tables(name)) for name in ("rollouts", "origins")]
    return parts[0].join(parts[1], on=["group_id", "sample_index"], how="left", maintain_order="left").to_dicts()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_format_has_a_line_of_its_file_and_a_command_in_the_page() -> None:
    page = (Path(__file__).parents[4] / "docs" / "other-data.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| [`") or line.startswith("| `")]
    for name in formats():
        row = next(line for line in rows if f"`{name}`" in line.split(" | ")[0])
        anchor = row.partition("(#")[2].partition(")")[0]
        assert anchor, name
        sections = {part.partition("\n")[0].lower().replace(" ", "-"): part for part in page.split("\n#### ")[1:]}
        examples = [line for line in sections[anchor].splitlines() if line.startswith("    ")]
        assert any(line.startswith("    rollbook import ") for line in examples) and len(examples) > 1, name
