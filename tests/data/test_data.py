"""The committed data and the committed base model are what their scripts and cards say."""

import doctest
import random
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest
import tiny
from arithmetic import make as arithmetic
from base import make as base
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

DATA = Path(__file__).resolve().parents[2] / "data"
WRITER = "2.1.0"
"""The Polars version that wrote the committed files; its name is part of their bytes."""


@pytest.fixture(scope="module")
def frames() -> dict[str, pl.DataFrame]:
    return {name: pl.read_parquet(DATA / "arithmetic" / f"{name}.parquet") for name in ("train", "heldout")}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DATA / "base")


def test_make_reproduces_the_committed_rows(frames: dict[str, pl.DataFrame]) -> None:
    made = arithmetic.make()
    assert all(made[name].equals(frame) for name, frame in frames.items())


@pytest.mark.skipif(pl.__version__ != WRITER, reason=f"the files were written by Polars {WRITER}")
def test_make_reproduces_the_committed_bytes(tmp_path: Path) -> None:
    tiny.write_tables(arithmetic.make(), tmp_path)
    for name in ("train.parquet", "heldout.parquet"):
        assert (tmp_path / name).read_bytes() == (DATA / "arithmetic" / name).read_bytes()


def test_no_question_occurs_twice_in_or_across_the_files(frames: dict[str, pl.DataFrame]) -> None:
    rows = pl.concat(frames.values())
    assert len(rows) == 4096 + 256
    assert rows["question"].n_unique() == len(rows)
    assert rows["prompt_id"].n_unique() == len(rows)


def test_every_answer_is_what_python_makes_of_the_question(frames: dict[str, pl.DataFrame]) -> None:
    for question, answer in pl.concat(frames.values()).select("question", "answer").iter_rows():
        assert str(eval(question, {"__builtins__": {}})) == answer


def test_partial_results_stay_between_0_and_99(frames: dict[str, pl.DataFrame]) -> None:
    for question in pl.concat(frames.values())["question"]:
        cuts = [i for i, character in enumerate(question) if character in "+-"] + [len(question)]
        assert len(cuts) - 1 in (2, 3)
        assert all(0 <= eval(question[:cut], {"__builtins__": {}}) <= 99 for cut in cuts)


@pytest.mark.parametrize("module", [arithmetic, base], ids=["arithmetic", "base"])
def test_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_tokenizer_gives_one_token_a_character_and_round_trips_every_prompt(
    frames: dict[str, pl.DataFrame], tokenizer: PreTrainedTokenizerBase
) -> None:
    for question in pl.concat(frames.values())["question"]:
        text = base.prompt(question)
        ids = tokenizer.encode(text)
        assert len(ids) == len(text) and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_every_careful_completion_fits_and_round_trips(
    frames: dict[str, pl.DataFrame], tokenizer: PreTrainedTokenizerBase
) -> None:
    for question, answer in pl.concat(frames.values()).select("question", "answer").iter_rows():
        completion = base.careful(question)
        ids = tokenizer.encode(completion)
        assert len(ids) + 1 <= tiny.MAX_NEW_TOKENS
        assert tokenizer.decode(ids) == completion
        assert base.read_answer(completion) == answer


def test_special_tokens_are_known(tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.decode([1]) == tiny.EOS


@pytest.mark.parametrize("text", ["Q:12+34-5= A:40", "é ß 中", "two\nlines\t and  blanks ", "it's 5 o'clock"])
def test_saved_tokenizer_is_the_scripts_and_loses_no_character(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == tiny.make_tokenizer().encode(text)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_model_directory_is_small_and_the_model_has_a_million_parameters() -> None:
    assert sum(path.stat().st_size for path in (DATA / "base").iterdir() if path.is_file()) < 5 * 2**20
    model = AutoModelForCausalLM.from_pretrained(DATA / "base")
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_117_568
    assert str(model.dtype) == "torch.float32"


def test_model_finishes_a_chain_that_was_begun(tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(DATA / "base")
    texts = base.said(model, tokenizer, [base.prompt("12+34-5") + "12", base.prompt("8+9+10") + "8"], sampled=False)
    assert texts == ["+34=46,46-5=41 A:41", "+9=17,17+10=27 A:27"]


def test_corpus_never_emits_a_heldout_question() -> None:
    def prompts(heldout: frozenset[str]) -> set[str]:
        rng = random.Random(5)
        return {base.corpus_row(rng, 0.5, heldout)[0] for _ in range(2000)}

    free = prompts(frozenset())
    forbidden = frozenset(text.removeprefix("Q:").removesuffix("=") for text in free)
    assert not prompts(forbidden) & free

    heldout = base.heldout_questions()
    assert len(heldout) == 256
    assert not prompts(heldout) & {base.prompt(question) for question in heldout}


def test_corpus_holds_careless_rows_in_the_share_asked_for() -> None:
    rng = random.Random(6)
    rows = [base.corpus_row(rng, 0.75, frozenset())[1] for _ in range(4000)]
    careful = sum(base.is_careful(completion) for completion in rows) / len(rows)
    assert careful == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [("12+34=46,46-5=41 A:41", "41"), (" A:7", "7"), ("12+34=46,46-5=41", None), (" A:", None), (None, None)],
)
def test_answer_is_read_from_the_end_of_a_completion(completion: str | None, answer: str | None) -> None:
    assert base.read_answer(completion) == answer
