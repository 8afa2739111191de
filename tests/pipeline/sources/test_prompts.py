"""Prompts from every kind of source, and the message for everything that can be wrong with one."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.common import memory
from pipeline.common.errors import DataError, UserError
from pipeline.config.data import PromptSource
from pipeline.sources.mixing import load
from pipeline.sources.prompts import make_prompts, source_hash
from pipeline.sources.rendering import chat_renderer, template_renderer
from pipeline.store import Artifact, Request, Store, read_table
from schemas import Prompts, SetAside

ROWS = [{"question": "1+1", "answer": "2"}, {"question": "¿2+2? 四", "answer": "4 ✓"}]
GSM8K = [
    {
        "question": "Natalia sold 48 clips in April and half as many in May. How many?",
        "answer": "48/2 = <<48/2=24>>24\n48+24 = 72\n#### 72",
    },
    {"question": "Weng earns $12 an hour. She worked 50 minutes. How much?", "answer": "12/60 = 0.2\n0.2*50 = 10\n#### 10"},
    {"question": "How many of 1,500 are left?", "answer": "All of them.\n#### 1,500 "},
]
Source = Callable[..., PromptSource]


@pytest.fixture
def jsonl(tmp_path: Path) -> Source:
    """jsonl(rows or text, **source settings)."""

    def make(rows: list[Any] | str | bytes, **settings: Any) -> PromptSource:
        if isinstance(rows, list):
            rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / "prompts.jsonl").write_bytes(rows.encode() if isinstance(rows, str) else rows)
        return PromptSource(path=str(tmp_path / "prompts.jsonl"), **settings)

    return make


@pytest.fixture
def parquet(tmp_path: Path) -> Source:
    def make(frame: pl.DataFrame, name: str = "prompts.parquet", **settings: Any) -> PromptSource:
        frame.write_parquet(tmp_path / name)
        return PromptSource(path=str(tmp_path / name), **settings)

    return make


def pairs(source: PromptSource) -> list[tuple[str, str]]:
    return load(source).good.select("question", "answer").rows()


def message(source: PromptSource) -> str:
    """What is said of a source that cannot be used, without its directory."""
    with pytest.raises(UserError) as told:
        load(source)
    return str(told.value).replace(f"{Path(source.path).parent}/", "")


def test_jsonl_parquet_and_saved_datasets_give_the_same_rows(jsonl: Source, parquet: Source, tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(tmp_path / "splits")
    expected = [(row["question"], row["answer"]) for row in ROWS]
    assert pairs(jsonl(ROWS)) == expected
    assert pairs(parquet(pl.DataFrame(ROWS))) == expected
    assert pairs(PromptSource(path=str(tmp_path / "one"))) == expected
    assert pairs(PromptSource(path=str(tmp_path / "splits"), split="test")) == expected[1:]
    assert message(PromptSource(path=str(tmp_path / "splits"))) == "splits: has the splits train, test; name one in data.*.split"
    assert "has the splits train, test" in message(PromptSource(path=str(tmp_path / "splits"), split="validation"))


def test_columns_are_named_by_the_source(jsonl: Source) -> None:
    source = jsonl([{"q": "1+1", "a": 2, "n": 7}], question="q", answer="a", prompt_id="n")
    assert load(source).good.rows() == [("7", "1+1", "2", None)]


def test_without_ids_a_prompt_is_named_by_its_question(jsonl: Source, tmp_path: Path) -> None:
    """The first digits of sha256("1+1"), whatever the file is called."""
    ids = load(jsonl(ROWS)).good["prompt_id"].to_list()
    assert ids[0] == "prompt-4a1b21d876ae"
    (tmp_path / "prompts.jsonl").rename(tmp_path / "other.jsonl")
    assert load(PromptSource(path=str(tmp_path / "other.jsonl"))).good["prompt_id"].to_list() == ids


def test_other_columns_are_kept_as_metadata(jsonl: Source) -> None:
    rows = [
        {"question": "a", "answer": "1", "level": 3, "topics": ["é", 1], "nested": {"x": None}},
        {"question": "b", "answer": "2", "level": "hard"},
        {"question": "c", "answer": "3"},
    ]
    assert load(jsonl(rows)).good["metadata"].to_list() == [
        '{"level": 3, "nested": {"x": null}, "topics": ["é", 1]}',
        '{"level": "hard"}',
        None,
    ]


def test_metadata_of_parquet_keeps_lists_and_dates(parquet: Source) -> None:
    frame = pl.DataFrame({"question": ["a"], "answer": ["1"], "day": ["2024-02-29"], "tags": [["x", "y"]], "raw": [{"n": 1}]})
    source = parquet(frame.with_columns(pl.col("day").str.to_date()))
    assert load(source).good["metadata"].to_list() == ['{"day": "2024-02-29", "raw": {"n": 1}, "tags": ["x", "y"]}']


def test_numbers_are_written_as_people_write_them(jsonl: Source) -> None:
    rows = [{"question": str(i), "answer": value} for i, value in enumerate([1, 1.5, "x", True, 10**50, "72.0"])]
    assert [answer for _, answer in pairs(jsonl(rows))] == ["1", "1.5", "x", "True", str(10**50), "72.0"]


def test_whole_numbers_that_a_file_holds_as_floats_are_whole_numbers(jsonl: Source, parquet: Source) -> None:
    """pandas makes floats of a column in which one number is missing."""
    found = [75.0, 1e-05, 1e16, 0.25, -3.0, -0.0, 1e22, 123456.789]
    right = ["75", "0.00001", "10000000000000000", "0.25", "-3", "0", "10000000000000000000000", "123456.789"]
    rows = [{"question": str(i), "answer": value} for i, value in enumerate(found)]
    assert [answer for _, answer in pairs(jsonl(rows))] == right
    assert [answer for _, answer in pairs(parquet(pl.DataFrame(rows)))] == right
    assert pairs(jsonl([{"question": 2.0, "answer": "2"}])) == [("2", "2")]


def test_decimals_keep_their_places_and_lose_their_exponent(parquet: Source) -> None:
    frame = pl.DataFrame({"question": ["a", "b"], "answer": [Decimal("1.50"), Decimal("1E-7")]})
    assert [answer for _, answer in pairs(parquet(frame))] == ["1.5000000", "0.0000001"]  # of one scale: the column's


def test_a_column_metadata_is_the_metadata(jsonl: Source, parquet: Source) -> None:
    """reasoning-gym writes {question, answer, metadata}."""
    metadata = {"source_dataset": "chain_sum", "difficulty": {"digits": [1, 2]}}
    rows = [
        {"question": "a", "answer": "1", "metadata": metadata, "split": "train"},
        {"question": "b", "answer": "2", "metadata": json.dumps(metadata)},
        {"question": "c", "answer": "3", "metadata": "{no object"},
        {"question": "d", "answer": "4", "metadata": {"split": "test"}, "split": "train"},
    ]
    assert [json.loads(text) for text in load(jsonl(rows)).good["metadata"]] == [
        {**metadata, "split": "train"},
        metadata,
        {"metadata": "{no object"},
        {"metadata": {"split": "test"}, "split": "train"},
    ]
    frame = pl.DataFrame([{"question": "a", "answer": "1", "metadata": metadata}])
    assert json.loads(load(parquet(frame)).good["metadata"][0]) == metadata


def test_limit_takes_the_first_rows(jsonl: Source, parquet: Source) -> None:
    assert pairs(jsonl(ROWS, limit=1)) == [("1+1", "2")]
    assert pairs(parquet(pl.DataFrame(ROWS), limit=1)) == [("1+1", "2")]
    assert len(pairs(jsonl(ROWS, limit=10))) == 2


def test_blank_lines_and_a_byte_order_mark_are_no_rows(jsonl: Source) -> None:
    assert pairs(jsonl('\ufeff{"question": "a", "answer": "1"}\n\n  \n{"question": "b", "answer": "2"}')) == [
        ("a", "1"),
        ("b", "2"),
    ]


def test_a_file_name_is_not_a_pattern(parquet: Source) -> None:
    assert len(pairs(parquet(pl.DataFrame(ROWS), name="part[1]*.parquet"))) == 2


def test_answer_pattern_takes_the_answer_out_of_a_worked_solution(jsonl: Source) -> None:
    answers = [answer for _, answer in pairs(jsonl(GSM8K, answer_pattern="#### (.+)$"))]
    assert answers == ["72", "10", "1,500"]


def test_a_pattern_without_a_group_takes_what_it_matches(jsonl: Source) -> None:
    assert pairs(jsonl([{"question": "a", "answer": "so: 42."}], answer_pattern=r"\d+")) == [("a", "42")]


@pytest.mark.parametrize(
    ("rows", "settings", "said"),
    [
        (
            [{"question": "a"}],
            {},
            "prompts.jsonl: no column 'answer' for the answer; it has question. Name the right one in data.*.answer",
        ),
        (
            [{"q": "a", "answer": 1}],
            {},
            "prompts.jsonl: no column 'question' for the question; it has q, answer. Name the right one",
        ),
        (
            ROWS,
            {"prompt_id": "id"},
            "prompts.jsonl: no column 'id' for the prompt_id; it has question, answer. Name the right one",
        ),
        ([{}], {}, "prompts.jsonl: no column 'question' for the question; it has no columns."),
        ("", {}, "prompts.jsonl: no rows. A prompts file needs at least one question with its answer"),
        ("\n\n", {}, "prompts.jsonl: no rows."),
        ([*ROWS, {"question": "c"}], {}, "prompts.jsonl, line 3: breaks the rule: answer is not empty; answer is null"),
        ([{"question": " ", "answer": "1"}], {}, "prompts.jsonl, line 1: breaks the rule: question is not empty"),
        ([{"question": "a", "answer": None}], {}, "prompts.jsonl, line 1: breaks the rule: answer is not empty; answer is null"),
        ([{"question": ["a"], "answer": "3"}], {}, "prompts.jsonl, line 1: column question holds a list, expected text"),
        (
            [{"question": {"x": 1}, "answer": "3"}],
            {},
            "line 1: column question holds a dict with 'x': name one of them, such as question.x, expected text",
        ),
        ('{"question": "a", "answer": "1"}\n{"question"', {}, "prompts.jsonl, line 2: not valid JSON: "),
        ('\n\n{"question": "a", "answer": 01}', {}, "prompts.jsonl, line 3: not valid JSON: "),
        ('["a", "b"]', {}, 'prompts.jsonl, line 1: expected an object such as {"question": ...}, found list'),
        ("[" * 5000, {}, "prompts.jsonl, line 1: not valid JSON: "),
        ('{"question": "a\\ud83d", "answer": "1"}', {}, "prompts.jsonl, line 1: not text: "),
        (b'{"question": "\xff"}', {}, "prompts.jsonl, line 1: not UTF-8 text: invalid start byte at byte 14"),
        ([*ROWS, ROWS[1]], {}, "prompts.jsonl, line 3: repeats line 2\n  Mend it, or set bad_rows: set_aside in that source"),
        (
            [*ROWS, {**ROWS[0], "answer": "3"}],
            {},
            "prompts.jsonl, line 1: prompt_id is there twice ('prompt-4a1b21d876ae'). Its question is there with another answer\n"
            "  line 3: prompt_id is there twice ('prompt-4a1b21d876ae'). Its question is there with another answer\n"
            "  2 of 3 rows do not fit.\n  Mend them, or set",
        ),
        (
            [{"id": 7, "question": "a", "answer": "1"}, {"id": "7", "question": "b", "answer": "1"}],
            {"prompt_id": "id"},
            "prompts.jsonl, line 1: prompt_id is there twice ('7'). Give every row an id of its own\n  line 2: prompt_id",
        ),
        (
            ROWS,
            {"answer_pattern": "#### (.+)$"},
            "prompts.jsonl, line 1: column answer does not match answer_pattern '#### (.+)$'",
        ),
        ([{"question": "a", "answer": "b"}], {"answer_pattern": "(a)|b"}, "line 1: column answer does not match answer_pattern"),
        ([{"question": "a", "answer": None}], {"answer_pattern": "(.*)"}, "line 1: breaks the rule: answer is not empty"),
        (ROWS, {"answer_pattern": "(["}, "answer_pattern: not a regular expression: "),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_source_is_refused_by_row_and_column(jsonl: Source, rows: Any, settings: dict[str, Any], said: str) -> None:
    assert said in message(jsonl(rows, **settings))


def test_bytes_and_missing_numbers_are_no_text(parquet: Source) -> None:
    binary = pl.DataFrame({"question": [b"a"], "answer": ["1"]})
    assert message(parquet(binary)) == ("prompts.parquet, row 0: column question holds a bytes, expected text\n  Mend it.")
    numbers = pl.DataFrame({"question": ["a", "b"], "answer": [1.0, float("nan")]})
    assert message(parquet(numbers)) == (
        "prompts.parquet, row 1: breaks the rule: answer is not empty; answer is null\n"
        "  Mend it, or set bad_rows: set_aside in that source to go on without such rows."
    )


def test_a_parquet_file_without_rows_is_refused(parquet: Source) -> None:
    assert message(parquet(pl.DataFrame({"question": [], "answer": []}))).startswith("prompts.parquet: no rows.")


def test_a_date_that_python_cannot_hold_is_told_with_the_file(parquet: Source) -> None:
    rows = pl.DataFrame({"question": ["a"], "answer": ["1"], "seen": pl.Series([2**60], dtype=pl.Datetime("us"))})
    assert message(parquet(rows)) == "prompts.parquet: cannot be read: year 38504 is out of range"


@pytest.mark.parametrize("content", [b"", b"PAR1", b"question,answer"])
def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "prompts.parquet").write_bytes(content)
    assert message(PromptSource(path=str(tmp_path / "prompts.parquet"))).startswith("prompts.parquet: cannot be read: ")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("question,answer\n", encoding="utf-8")
    said = message(PromptSource(path=str(tmp_path / "prompts.csv")))
    assert said == "prompts.csv: unknown kind of file; prompts are read from .jsonl, .parquet or a Hugging Face dataset"


@pytest.mark.parametrize("path", ["nowhere.jsonl", "nowhere.parquet", "./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere"])
def test_a_path_that_is_not_there_is_no_hub_name(path: str) -> None:
    for look in (load, source_hash):
        with pytest.raises(UserError, match=f"^{path}: no such file or directory$"):
            look(PromptSource(path=path))


def test_a_hub_dataset_is_known_by_its_name_and_revision() -> None:
    assert source_hash(PromptSource(path="openai/gsm8k", revision="abc")) == "hub:openai/gsm8k@abc"
    assert source_hash(PromptSource(path="org/data-v1.5")) == "hub:org/data-v1.5@default"


def test_the_hash_of_a_source_follows_its_bytes(jsonl: Source, tmp_path: Path) -> None:
    before = source_hash(jsonl(ROWS))
    assert source_hash(jsonl(ROWS)) == before
    assert source_hash(jsonl(ROWS[:1])) != before
    directory = tmp_path / "saved"
    directory.mkdir()
    (directory / "a").write_text("x", encoding="utf-8")
    before = source_hash(PromptSource(path=str(directory)))
    (directory / "a").rename(directory / "b")
    assert source_hash(PromptSource(path=str(directory))) != before


def test_a_template_fills_the_question_in_and_leaves_other_braces() -> None:
    render = template_renderer('{"role": "{user}", "text": "{question}"} {question} {} {0}')
    assert render(["{x} {question}", "é"]) == [
        '{"role": "{user}", "text": "{x} {question}"} {x} {question} {} {0}',
        '{"role": "{user}", "text": "é"} é {} {0}',
    ]


@pytest.mark.parametrize("template", ["", "Q:", "{Question}", "{ question }", "{{question"])
def test_a_template_without_the_question_is_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"data\.template: has no \{question\} in it"):
        template_renderer(template)


def test_a_chat_is_rendered_by_the_models_own_template() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(UserError, match=r"data\.chat: this model's tokenizer has no chat template\. Set chat: false"):
        chat_renderer(tokenizer, "{question}", None)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert chat_renderer(tokenizer, "Q: {question}", None)(["a", "{b}"]) == ["<user>Q: a<assistant>", "<user>Q: {b}<assistant>"]
    assert chat_renderer(tokenizer, "{question}", "Be brief.")(["a"]) == ["<system>Be brief.<user>a<assistant>"]
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}"
    assert chat_renderer(tokenizer, "{question}", None)(["a"]) == ["26 Jul 2024: a"]


def make(store: Store, name: str, source: PromptSource, other: Artifact | None = None) -> Artifact:
    request = Request("prompts", "prompts/1", {"name": name}, (other.as_parent("disjoint_from"),) if other else ())
    return make_prompts(store, request, source, template_renderer("Q:{question}="), other)


def test_prompts_are_kept_as_an_artifact(store: Store, jsonl: Source) -> None:
    artifact = make(store, "train", jsonl(ROWS))
    frame = read_table(artifact, Prompts)
    assert frame["prompt_text"].to_list() == ["Q:1+1=", "Q:¿2+2? 四="]
    assert frame["answer"].to_list() == ["2", "4 ✓"]
    assert artifact.summary == {"prompts": 2}
    source = jsonl(ROWS)
    assert artifact.manifest.provenance.notes == {"read_from": source.path, "source_hash": source_hash(source)}


def test_heldout_questions_that_are_trained_on_are_refused(store: Store, jsonl: Source) -> None:
    train = make(store, "train", jsonl(ROWS))
    overlapping = jsonl([{"question": "new", "answer": "1"}, {**ROWS[1], "answer": "other"}])
    with pytest.raises(
        DataError, match=r"1 questions are also training prompts, the first is 'prompt-.*data\.allow_overlap: true"
    ):
        make(store, "heldout", overlapping, train)
    assert make(store, "other", jsonl([{"question": "new", "answer": "1"}]), train).summary == {"prompts": 1}


def test_bad_rows_are_set_aside_with_their_reasons(store: Store, jsonl: Source) -> None:
    lines = [
        '{"question": "1+1", "answer": "2", "level": 3}',
        "{",
        '{"question": "", "answer": "2"}',
        '{"question": "2+2", "answer": "4"}',
    ]
    source = jsonl("\n".join([*lines, lines[0]]), bad_rows="set_aside")
    artifact = make(store, "train", source)
    assert read_table(artifact, Prompts)["question"].to_list() == ["1+1", "2+2"]
    kept = read_table(artifact, SetAside)
    assert kept["place"].to_list() == ["line 2", "line 3", "line 5"]
    assert kept["why"].to_list() == [
        "not valid JSON: Expecting property name enclosed in double quotes (column 2)",
        "breaks the rule: question is not empty",
        "repeats line 1",
    ]
    assert kept["content"].to_list() == [
        "{\n",
        '{"answer": "2", "metadata": null, "prompt_id": "prompt-e3b0c44298fc", "question": ""}',
        '{"answer": "2", "level": 3, "question": "1+1"}',
    ]
    assert (artifact.summary, artifact.manifest.provenance.notes["set_aside"]) == ({"prompts": 2}, 3)


def test_a_source_without_one_good_row_is_refused_even_then(jsonl: Source) -> None:
    said = message(jsonl('{\n{"question": "a", "answer": ""}\n', bad_rows="set_aside"))
    assert said.startswith("prompts.jsonl, line 1: not valid JSON: ")
    assert said.endswith("2 of 2 rows do not fit.\n  Mend them.")


def test_parquet_that_unfolds_is_refused_before_it_does(tmp_path: Path) -> None:
    """One text of 4 MB, named 20,000 times by its number: 1 KB on disk, 80 GB as text."""
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, np.int32)), pa.array(["A" * 4_000_000]))
    pq.write_table(pa.table({"question": texts, "answer": texts}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 5_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = message(PromptSource(path=str(tmp_path / "bomb.parquet")))
    assert said.startswith("bomb.parquet: holds more than the ") and "Cut it into smaller files" in said
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 500_000  # KiB


def test_parquet_with_more_rows_than_memory_is_refused_by_its_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "budget", lambda: 1 << 20)
    pq.write_table(pa.table({"question": pa.nulls(100_000, pa.int8())}), tmp_path / "rows.parquet")
    assert (tmp_path / "rows.parquet").stat().st_size < 2_000
    assert message(PromptSource(path=str(tmp_path / "rows.parquet"))).startswith("rows.parquet: says that it expands to ")


def test_a_link_to_the_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", encoding="utf-8")
    assert message(PromptSource(path=str(tmp_path / "a.jsonl"))).endswith("Fetch it with `git lfs pull`")
