"""The calculator task and the model that may call one are what their scripts and cards say."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest
import tiny
from calculator import make as calculator
from caller import make as caller
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.environments.arithmetic import value_of

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture(scope="module")
def frames() -> dict[str, pl.DataFrame]:
    return {name: pl.read_parquet(DATA / "calculator" / f"{name}.parquet") for name in ("train", "heldout")}


def test_make_reproduces_the_committed_rows(frames: dict[str, pl.DataFrame]) -> None:
    made = calculator.make()
    assert all(made[name].equals(frame) for name, frame in frames.items())


def test_every_answer_is_what_the_calculator_says_and_no_question_occurs_twice(frames: dict[str, pl.DataFrame]) -> None:
    rows = pl.concat(frames.values())
    assert rows["question"].n_unique() == rows["prompt_id"].n_unique() == len(rows) == 4096 + 256
    for question, answer in rows.select("question", "answer").iter_rows():
        assert value_of(question) == answer == str(caller.value(question))


def test_only_what_the_model_draws_carries_a_label() -> None:
    tokenizer = tiny.make_tokenizer()
    ids, labels = caller.batch_tensors([("Q:2*3+1=", caller.called("2*3+1", "7"))], tokenizer)
    drawn = [token for token, label in zip(ids[0].tolist(), labels[0].tolist(), strict=True) if label == token]
    assert tokenizer.decode(ids[0]) == "Q:2*3+1=[2*3+1]<eos>7 A:7<eos>"
    assert tokenizer.decode(drawn) == "[2*3+1]<eos> A:7<eos>"


def test_the_corpus_holds_guesses_in_the_share_asked_for() -> None:
    rng = random.Random(6)
    rows = [caller.corpus_row(rng, 0.75, frozenset())[1] for _ in range(2000)]
    assert sum(len(turns) > 1 for turns in rows) / len(rows) == pytest.approx(0.25, abs=0.03)


def test_the_model_is_small_and_answers_with_what_the_calculator_says() -> None:
    assert sum(path.stat().st_size for path in (DATA / "caller").iterdir() if path.is_file()) < 2.2e6
    model, tokenizer = AutoModelForCausalLM.from_pretrained(DATA / "caller"), AutoTokenizer.from_pretrained(DATA / "caller")
    assert sum(parameter.numel() for parameter in model.parameters()) == 493_632
    said = [*tokenizer.encode("Q:37*48-26=[37*48-26]"), tokenizer.eos_token_id, *tokenizer.encode("1750")]
    assert tokenizer.decode(tiny.complete(model, tokenizer, [said], sampled=False)[0]) == " A:1750<eos>"
