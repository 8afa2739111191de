"""Data sets as they are: chat messages, nested references, lists, filters, the lot, and several sets mixed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from pipeline.common.errors import UserError
from pipeline.config.data import DataConfig, PromptSource
from pipeline.config.run import RunConfig
from pipeline.sources.dialogues import asked_of, shared_questions
from pipeline.sources.mixing import load
from pipeline.sources.order import prompts_request
from pipeline.sources.prompts import load_once, source_hash
from pipeline.sources.rendering import Rendering, chat_renderer
from pipeline.sources.tokenizer import load_tokenizer

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}
ANSWER, AGAIN = {"role": "assistant", "content": "4"}, {"role": "user", "content": "And 3+3?"}
VERL = {
    "data_source": "math_dapo",
    "prompt": [{"role": "user", "content": "Solve: 1+1"}],
    "ability": "MATH",
    "reward_model": {"ground_truth": "2", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "9a9b"},
}
ROWS = [{"question": f"{n}+1", "answer": n + 1, "level": n, "info": {"kind": "odd" if n % 2 else "even"}} for n in range(10)]
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(rows, "a.jsonl") -> its path."""

    def make(rows: list[dict[str, Any]], name: str = "set.jsonl") -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(tmp_path / name)

    return make


def questions(source: PromptSource) -> list[str]:
    return load(source).good["question"].to_list()


def message(source: PromptSource) -> str:
    with pytest.raises(UserError) as told:
        load(source)
    return str(told.value).replace(f"{Path(source.path).parent}/", "")


def test_what_follows_the_users_last_turn_is_not_asked(write: Write) -> None:
    source = PromptSource(path=write([{"messages": [USER, ANSWER], "answer": "4"}]), question="messages")
    (row,) = load(source).good.to_dicts()
    assert (row["question"], row["answer"], row["metadata"]) == ("2+2?", "4", None)
    alone = load(PromptSource(path=write([{"question": "2+2?", "answer": "4"}]))).good
    assert row["prompt_id"] == alone["prompt_id"][0]


def test_a_system_message_and_earlier_turns_are_asked_too(write: Write, save_tokenizer: Any, tmp_path: Path) -> None:
    source = PromptSource(path=write([{"messages": [SYSTEM, USER, ANSWER, AGAIN, ANSWER], "answer": "6"}]), question="messages")
    good = load(source).good
    assert good["question"].to_list() == ["And 3+3?"]
    assert json.loads(good["metadata"][0]) == {"earlier_turns": [SYSTEM, USER, ANSWER]}
    template = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}{% if think %}<think>{% endif %}"
    save_tokenizer(tmp_path / "model", "bytes", chat_template=template)
    chat = Rendering(str(tmp_path / "model"), "Q: {question}", True, "Be kind.", False, None, '{"think": true}')
    written = chat.renderer()([*asked_of(good), "1+1?"])
    assert written == ["<s>Be brief.<u>2+2?<a>4<u>Q: And 3+3?<think>", "<s>Be kind.<u>Q: 1+1?<think>"]


def test_dialogues_without_a_chat_template_are_refused(write: Write) -> None:
    source = PromptSource(path=write([{"messages": [SYSTEM, USER], "answer": "4"}]), question="messages")
    with pytest.raises(UserError, match=r"has a system message or earlier turns before its question.*Set data.chat: true"):
        load_once(source, Rendering("nowhere", "{question}", False, None, False, None))


def test_what_a_chat_template_never_reads_is_refused(write: Write, save_tokenizer: Any, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "model", "bytes", chat_template="{{ messages[0].content }}{% if enable_thinking %}.{% endif %}")
    source = PromptSource(path=write(ROWS))
    load_once(source, Rendering(str(tmp_path / "model"), "{question}", True, None, False, None, '{"enable_thinking": false}'))
    with pytest.raises(UserError, match="chat template never reads 'enable_thnking', so it would change nothing"):
        load_once(source, Rendering(str(tmp_path / "model"), "{question}", True, None, False, None, '{"enable_thnking": false}'))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, "only chat templates read them; set chat: true"),
        ({"chat": True, "chat_template_kwargs": {"tokenize": True}}, "tokenize is not for the template alone"),
        ({"train": {"path": "a", "share": 0.5}}, "in a mix either every set has one, or none"),
        ({"train": {"path": "a", "more": [{"path": "b", "share": 1}]}}, "in a mix either every set has one, or none"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataConfig.model_validate({"train": {"path": "a"}, "heldout": {"path": "b"}} | changes)


def test_dotted_names_lead_into_columns(write: Write, tmp_path: Path) -> None:
    pl.DataFrame([VERL]).write_parquet(tmp_path / "verl.parquet")
    for path in (write([VERL]), str(tmp_path / "verl.parquet")):
        good = load(
            PromptSource(path=path, question="prompt", answer="reward_model.ground_truth", prompt_id="extra_info.index")
        ).good
        assert good.select("prompt_id", "question", "answer").rows() == [("9a9b", "Solve: 1+1", "2")]
        assert json.loads(good["metadata"][0])["reward_model"]["style"] == "rule-lighteval/MATH_v2"
    text = write([{"question": "a", "input_output": '{"outputs": ["3\\n"]}'}])
    assert load(PromptSource(path=text, answer="input_output.outputs.0")).good["answer"].to_list() == ["3\n"]


def test_a_name_that_leads_nowhere_says_what_is_there(write: Write) -> None:
    said = message(PromptSource(path=write([VERL]), question="prompt", answer="reward_model.groundtruth"))
    assert said == (
        "set.jsonl: no row has anything at 'reward_model.groundtruth' for the answer; reward_model of the first has "
        "'ground_truth', 'style'. Name the right place in data.*.answer"
    )
    said = message(PromptSource(path=write([VERL]), question="prompt", answer="reward_model"))
    assert "column reward_model holds a dict with 'ground_truth', 'style': name one of them, such as" in said


def test_a_reference_that_is_a_list_is_its_only_item_or_json(write: Write) -> None:
    found = [["4"], [[2.0]], ["Oslo", "the city of Oslo é"], 5.0, [{"input": "1", "output": "2"}, 1]]
    rows = [{"question": str(n), "answer": value} for n, value in enumerate(found)]
    answers = load(PromptSource(path=write(rows))).good["answer"].to_list()
    assert answers == ["4", "2", '["Oslo", "the city of Oslo é"]', "5", '[{"input": "1", "output": "2"}, 1]']
    assert "answer is null" in message(PromptSource(path=write([{"question": "a", "answer": []}])))


def test_transcripts_are_read_as_messages(write: Write) -> None:
    text = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why\n\nis it so?\n\nAssistant: Because."
    settings = {"question": "chosen", "answer": "chosen", "answer_pattern": r"(?s).*\n\nAssistant:(.*)"}
    (row,) = load(PromptSource(path=write([{"chosen": text}]), transcript=True, **settings)).good.to_dicts()
    assert (row["question"], row["answer"]) == ("Why\n\nis it so?", "Because.")
    assert [turn["content"] for turn in json.loads(row["metadata"])["earlier_turns"]] == ["Hi", "Hello."]
    assert "expected a text of turns" in message(PromptSource(path=write([{"chosen": "Hi"}]), transcript=True, **settings))


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("level >= 3 AND level < 5", [3, 4]),
        ("info.kind = 'odd' AND level < 4", [1, 3]),
        ("question LIKE '9%' OR level IN (0, 2)", [0, 2, 9]),
        ("level > (9 - 1)", [9]),
    ],
)
def test_a_condition_chooses_rows(write: Write, condition: str, kept: list[int]) -> None:
    assert questions(PromptSource(path=write(ROWS), where=condition)) == [f"{n}+1" for n in kept]


def test_rows_whose_value_is_missing_are_not_chosen_and_limit_counts_those_that_are(write: Write) -> None:
    rows = [*ROWS[:5], {"question": "a", "answer": "b"}, *ROWS[5:]]
    assert questions(PromptSource(path=write(rows), where="level > 3", limit=2)) == ["4+1", "5+1"]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("levle > 3", "where: 'levle > 3' reads 'levle', and set.jsonl has no such column; did you mean 'level'?"),
        ("level >", "where: 'level >' is no SQL expression such as"),
        ("level + 1", "where: 'level + 1' gives Int64, expected true or false of every row"),
        ("level > 99", "set.jsonl: none of 11 rows fits where: 'level > 99'"),
        ("info.kind > 3", "where: 'info.kind > 3' cannot be asked of set.jsonl: "),
        ("level IN (SELECT * FROM read_csv('a'))", "asks another table; expected an expression over the set's own columns"),
        ("mixed = 3", "column 'mixed' holds 3 in line 1 and 'x' in line 11; expected values of one kind"),
    ],
)
def test_a_condition_that_cannot_be_asked_is_told(write: Write, condition: str, said: str) -> None:
    rows = [{**ROWS[0], "mixed": 3}, *ROWS[1:], {"question": "z", "answer": "z", "level": 1, "info": None, "mixed": "x"}]
    assert said in message(PromptSource(path=write(rows), where=condition))


def test_rows_drawn_by_lot_are_the_same_whatever_their_order(write: Write) -> None:
    path = write(ROWS)
    drawn = questions(PromptSource(path=path, limit=4, lot=0))
    assert len(drawn) == 4 and drawn == sorted(drawn) and drawn != questions(PromptSource(path=path, limit=4))
    assert questions(PromptSource(path=write(ROWS[::-1], "back.jsonl"), limit=4, lot=0)) == drawn[::-1]
    assert len({tuple(questions(PromptSource(path=path, limit=4, lot=seed))) for seed in range(6)}) > 3


def test_sets_are_mixed_by_their_shares(write: Write) -> None:
    """Ten rows for three parts and four for one: of the second set 10/3, of the first all."""
    other = write([{"q": f"{n}*1", "a": n} for n in range(4)], "other.jsonl")
    more = {"path": other, "question": "q", "answer": "a"}
    source = PromptSource.model_validate({"path": write(ROWS), "share": 3, "more": [{**more, "share": 1}]})
    assert questions(source) == [*(f"{n}+1" for n in range(10)), "0*1", "1*1", "2*1"]
    source = PromptSource.model_validate({"path": write(ROWS), "share": 0.5, "limit": 2, "more": [{**more, "share": 0.5}]})
    assert questions(source) == ["0+1", "1+1", "0*1", "1*1"]
    both = PromptSource.model_validate({"path": write(ROWS), "more": [more]})
    assert len(questions(both)) == 14
    assert source_hash(both) not in (source_hash(PromptSource(path=both.path)), source_hash(PromptSource(path=other)))


def test_a_question_of_two_sets_is_the_firsts(write: Write) -> None:
    more = [{"path": write([ROWS[3], {"question": "new", "answer": "1"}], "b.jsonl")}]
    path = write(ROWS)
    said = message(PromptSource.model_validate({"path": path, "more": more}))
    assert said.startswith("b.jsonl, line 1: its question is also in set.jsonl")
    kept = load(PromptSource.model_validate({"path": path, "more": [{**more[0], "bad_rows": "set_aside"}]}))
    assert len(kept.good) == 11
    assert kept.bad["place"].to_list() == [f"{more[0]['path']}, line 1"]


def test_a_column_with_the_name_of_earlier_turns_is_refused(write: Write) -> None:
    said = message(PromptSource(path=write([{"question": "a", "answer": "b", "earlier_turns": []}])))
    assert "column earlier_turns: the name of what is said before a question; call the column otherwise" in said


def test_settings_that_only_choose_rows_are_in_the_hash_of_the_rows_alone(make_config: Callable[..., RunConfig]) -> None:
    """The key of a source is what it was before these settings were there."""
    config = make_config()
    plain, chosen = config.data.train, config.data.train.model_copy(update={"where": "x > 1", "lot": 3})
    keys = {prompts_request(config, one, "hash", model=None, disjoint_from=None).key for one in (plain, chosen)}
    assert len(keys) == 1
    told = make_config({"data.chat": True, "data.chat_template_kwargs": {"enable_thinking": False}})
    recipe = prompts_request(told, plain, "hash", model=None, disjoint_from=None).recipe
    assert recipe["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in prompts_request(config, plain, "hash", model=None, disjoint_from=None).recipe


def test_a_conversation_is_refused_by_its_place(write: Write) -> None:
    rows = [{"messages": [ANSWER], "answer": "4"}, {"messages": [{"role": "user", "content": 3}], "answer": "4"}]
    said = message(PromptSource(path=write(rows), question="messages"))
    assert said.startswith("set.jsonl, line 1: column messages: no message is the user's, so there is no question")
    assert "line 2: column messages: the content of message 0 is no text" in said


def test_heldout_dialogues_are_shared_only_with_their_turns(write: Write) -> None:
    one = load(PromptSource(path=write([{"m": [SYSTEM, AGAIN], "answer": "6"}]), question="m")).good
    two = load(PromptSource(path=write([{"m": [USER, ANSWER, AGAIN], "answer": "6"}]), question="m")).good
    assert len(shared_questions(one, two)) == 0 and len(shared_questions(one, one)) == 1


def test_a_chat_template_that_refuses_messages_says_so(save_tokenizer: Any, tmp_path: Path) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    save_tokenizer(tmp_path, "bytes", chat_template=template)
    render = chat_renderer(load_tokenizer(tmp_path, trust_remote_code=False), "{question}", None)
    with pytest.raises(UserError, match=r"the model's chat template refuses these messages: no system role"):
        render([[SYSTEM, USER]])
