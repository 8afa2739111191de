"""`rollbook init`: what it writes is sound, and what cannot be is told in one message."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.commands.completion import algorithm_names
from pipeline.config.load import load_config
from pipeline.prepare.data import divide, read_questions
from pipeline.prepare.draft import scalar
from pipeline.prepare.interview import _read
from pipeline.prepare.model import find_model
from pipeline.prepare.recipes import RECIPES, recipe_names

BASE = Path(__file__).resolve().parents[2] / "data/base"
QUESTIONS = [{"q": f"{number}+1", "solution": str(number + 1), "level": number % 3} for number in range(40)]
Rollbook = Callable[..., Any]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "mine.jsonl", QUESTIONS)


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def options(**more: str) -> list[str]:
    given = {"model": str(BASE), "data": "mine.jsonl", **more}
    return [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]


def test_options_alone_write_a_config_that_is_sound(rollbook: Rollbook, data: Path, tmp_path: Path) -> None:
    said = rollbook("init", "first", *options(reward="own", template="Q:{question}=", name="mine", algorithm="grpo"))
    assert said.status == 0, said.err
    assert "prompts    36 for training, 4 held out" in said.out
    assert said.out.endswith("    cd first\n    rollbook run run.yaml\n")
    assert sorted(os.listdir(tmp_path / "first")) == ["heldout.jsonl", "reward.py", "run.yaml", "train.jsonl"]
    config = load_config(tmp_path / "first" / "run.yaml")
    assert (config.name, config.model.path, config.data.template) == ("mine", str(BASE), "Q:{question}=")
    assert (config.data.train.question, config.data.train.answer) == ("q", "solution")
    assert config.reward.components[0].grader == "reward:score"
    assert config.train.algorithm == "grpo"
    assert config.generate.max_tokens == 128


@pytest.mark.parametrize("name", recipe_names())
def test_init_writes_every_recipe_with_ones_own_model_and_data(rollbook: Rollbook, data: Path, tmp_path: Path, name: str) -> None:
    said = rollbook("init", "first", *options(reward="exact", template="Q:{question}=", recipe=name))
    assert said.status == 0, said.err
    made, recipe = load_config(tmp_path / "first" / "run.yaml"), load_config(RECIPES / f"{name}.yaml")
    assert (made.model.path, made.data.train.question) == (str(BASE), "q")
    assert (made.train.algorithm, made.phases, made.iterations) == (recipe.train.algorithm, recipe.phases, recipe.iterations)


def test_a_well_known_set_is_told_by_its_columns(rollbook: Rollbook, tmp_path: Path) -> None:
    """DAPO-Math-17k has messages as prompts, the reference inside a column, and every row many times."""
    rows = [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": f"{number}+1"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": str(number + 1), "style": "rule"},
        }
        for number in range(40)
    ]
    write_jsonl(tmp_path / "mine.jsonl", [*rows, *rows])
    said = rollbook("init", "first", *options(reward="exact", template="Q:{question}="))
    assert said.status == 0, said.err
    assert "prompts    36 for training, 4 held out" in said.out
    train = load_config(tmp_path / "first" / "run.yaml").data.train
    assert (train.question, train.answer, train.bad_rows) == ("prompt", "reward_model.ground_truth", "set_aside")
    assert "# Their columns are those of DAPO-Math-17k: verl's form" in (tmp_path / "first" / "run.yaml").read_text()


def test_files_that_are_there_are_kept(rollbook: Rollbook, data: Path, tmp_path: Path) -> None:
    assert rollbook("init", *options(reward="own")).status == 0
    (tmp_path / "reward.py").write_text("def score(completion, answer, prompt):\n    return 0.5\n", encoding="utf-8")
    said = rollbook("init", *options(reward="own"))
    assert said.status == 2 and "run.yaml: already there" in said.err
    (tmp_path / "run.yaml").unlink()
    said = rollbook("init", *options(reward="own"))
    assert said.status == 2 and "train.jsonl, heldout.jsonl: already there" in said.err
    assert rollbook("init", *options(reward="own"), "--force").status == 0
    assert "0.5" in (tmp_path / "reward.py").read_text(encoding="utf-8")


def test_json_says_what_was_written_and_what_comes_next(rollbook: Rollbook, data: Path) -> None:
    found = json.loads(rollbook("init", "first", *options(), "--json").out)
    assert found["written"] == ["first/train.jsonl", "first/heldout.jsonl", "first/run.yaml"]
    assert found["next"] == ["cd first", "rollbook run run.yaml"] and found["problem"] is None


def test_a_second_file_is_what_checkpoints_are_judged_by(rollbook: Rollbook, data: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [{"q": "2*2", "solution": "4"}])
    said = rollbook("init", *options(heldout="test.jsonl"))
    assert said.status == 0, said.err
    assert "prompts    40 for training, 1 held out" in said.out
    assert load_config(tmp_path / "run.yaml").data.heldout.path == "test.jsonl"
    assert not (tmp_path / "train.jsonl").exists()


def test_tables_of_other_kinds_are_read(rollbook: Rollbook, tmp_path: Path) -> None:
    frame = pl.DataFrame(QUESTIONS)
    frame.write_csv(tmp_path / "a.csv")
    frame.write_csv(tmp_path / "b.tsv", separator="\t")
    frame.write_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.json").write_text(json.dumps(QUESTIONS), encoding="utf-8-sig")
    frame.write_csv(tmp_path / "E.CSV")
    frame.write_csv(tmp_path / "f.csv", separator=";", include_bom=True)
    frame.write_csv(tmp_path / "g.csv", separator="\t")
    for name in ("a.csv", "b.tsv", "c.parquet", "d.json", "E.CSV", "f.csv", "g.csv"):
        said = rollbook("init", name.partition(".")[0], *options(data=name))
        assert said.status == 0 and "36 for training, 4 held out" in said.out, said.err


def test_the_file_that_is_read_is_never_replaced_by_a_part_of_itself(rollbook: Rollbook, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "train.jsonl", QUESTIONS)
    said = rollbook("init", *options(data="train.jsonl"), "--force")
    assert said.status == 2 and "train.jsonl: is read, and a part of it" in said.err
    assert read_questions(data).rows == QUESTIONS
    assert rollbook("init", "first", *options(data="train.jsonl")).status == 0


def test_what_comes_next_can_be_pasted_into_a_shell(rollbook: Rollbook, data: Path) -> None:
    assert rollbook("init", "my first run", *options()).out.endswith("    cd 'my first run'\n    rollbook run run.yaml\n")


def test_paths_that_are_typed_may_start_with_a_tilde(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(_read("~/mine.jsonl").rows) == 40
    (tmp_path / "model").symlink_to(BASE)
    assert find_model("~/model").path == str(tmp_path / "model")


def test_worked_solutions_give_an_answer_pattern(rollbook: Rollbook, tmp_path: Path) -> None:
    rows = [{"question": f"{n}+1", "answer": f"We add one.\n#### {n + 1}"} for n in range(20)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    assert rollbook("init", *options()).status == 0
    config = load_config(tmp_path / "run.yaml")
    assert config.data.train.answer_pattern == "#### (.+)$" == config.data.heldout.answer_pattern
    assert config.reward.components[0].grader == "regex"


WRONG = {
    "nobody to ask": ([], "nobody to ask: --model (a model directory, or a hub name); --data (a file of questions and answers)"),
    "no model": (
        ["--model", "nowhere", "--data", "mine.jsonl"],
        "nowhere: no such directory. Give a Hugging Face model directory",
    ),
    "no data": (options(data="none.jsonl"), "none.jsonl: no such file"),
    "a mistyped end of a name": (options(data="mine.jsnl"), "data.train. Did you mean mine.jsonl?"),
    "a directory for data": (options(data="."), ".: not a file"),
    "no such column": (options(question="p"), "no column in mine.jsonl 'p'; there is q, solution, level"),
    "two columns that are not there": (options(question="p", answer="r"), "--question: no column in mine.jsonl 'p'"),
    "nor the other": (options(question="p", answer="r"), "; --answer: no column in mine.jsonl 'r'; there is q, solution, level"),
    "an unquoted template": (
        [*options(), "--template", "Q:", "{question}="],
        "where the question goes. Spaces need quotes: 'Q: {question} A:'",
    ),
    "a mistyped file": (options(data="mime.jsonl"), "mime.jsonl: no such file. Did you mean mine.jsonl?"),
    "no such reward": (options(reward="maths"), "no reward 'maths'; there is exact, math, regex, own"),
    "no such algorithm": (options(algorithm="gprpo"), "no algorithm 'gprpo'; did you mean"),
    "no pattern": (options(reward="regex", pattern="("), "'(': not a regular expression"),
    "no place for the question": (options(template="Q:"), "'Q:': has no {question} in it"),
    "no chat template": ([*options(), "--chat"], "has no chat template. Use --template instead"),
    "no name": (options(name="a b"), "--name a b: expected letters"),
    "own function that is not there": (options(reward="mine:score"), "run.yaml is written, but is not sound yet: reward"),
    "held-out questions that are trained on": (options(heldout="mine.jsonl"), "40 held-out questions are also in"),
}


def test_columns_that_cannot_be_guessed_are_all_named_at_once(rollbook: Rollbook, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("left,middle,right\n" + "1,2,3\n" * 10, encoding="utf-8")
    said = rollbook("init", *options(data="mine.csv"), "--yes")
    assert said.status == 2 and len(said.err.splitlines()) == 1
    assert "--question (the column of the questions, of left, middle, right); --answer (the column of the answers" in said.err
    assert said.err.endswith("Add --question … --answer …\n")


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (("id", "problem", "ground_truth"), ("problem", "ground_truth")),
        (("query", "gold"), ("query", "gold")),
        (("task", "meaning", "row_id"), ("task", "meaning")),
        (("first", "label"), ("first", "label")),
        (("text", "difficulty", "value"), ("text", "value")),
    ],
    ids=str,
)
def test_columns_are_guessed_by_usual_names_or_are_what_is_left(
    rollbook: Rollbook, tmp_path: Path, columns: tuple[str, ...], found: tuple[str, str]
) -> None:
    write_jsonl(tmp_path / "mine.jsonl", [{name: f"{name} {row}" for name in columns} for row in range(20)])
    said = rollbook("init", *options(), "--yes")
    assert said.status == 0, said.err
    train = load_config(tmp_path / "run.yaml").data.train
    assert (train.question, train.answer) == found


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_told(rollbook: Rollbook, data: Path, arguments: list[str], said: str) -> None:
    ended = rollbook("init", *arguments)
    assert ended.status == 2
    assert said in ended.err and "Traceback" not in ended.err


def test_rows_that_cannot_be_read_are_told_or_left_out(rollbook: Rollbook, data: Path, tmp_path: Path) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write('{"q": \n')
    said = rollbook("init", *options())
    assert said.status == 2 and "mine.jsonl, line 41: " in said.err and "--set-aside" in said.err
    assert rollbook("init", *options(), "--set-aside").status == 0
    assert len(read_questions(tmp_path / "train.jsonl").rows) == 36


def test_a_prompt_that_leaves_no_room_is_told(rollbook: Rollbook, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mine.jsonl", [*QUESTIONS, {"q": "1+" * 130, "solution": "1"}])
    said = rollbook("init", *options())
    assert said.status == 2 and "the longest prompt has" in said.err and "takes 256 with the completion" in said.err


def test_the_same_questions_are_held_out_in_any_order(tmp_path: Path) -> None:
    twice = [*QUESTIONS, *QUESTIONS[:5]]
    one = divide(read_questions(write_jsonl(tmp_path / "a.jsonl", twice)), "q")
    other = divide(read_questions(write_jsonl(tmp_path / "b.jsonl", twice[::-1])), "q")
    assert [sorted(row["q"] for row in side) for side in one] == [sorted(row["q"] for row in side) for side in other]
    assert not {row["q"] for row in one[0]} & {row["q"] for row in one[1]}


@pytest.mark.parametrize(
    "text", ["data/a.jsonl", "y", "1e5", "null", "- a", "a: b", "#", "{question}", 'say "it"', "é\n\u2028", ""]
)
def test_any_text_survives_the_yaml(text: str, tmp_path: Path) -> None:
    from pipeline.config.plain_yaml import parse_yaml

    assert parse_yaml(f"{{key: {scalar(text)}, other: 1}}") == {"key": text, "other": 1}


def test_the_shell_completes_algorithms() -> None:
    words = "rollbook compare runs/a --algorithms grpo,rec-oneside-n"
    environment = {**os.environ, "_ROLLBOOK_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "4"}
    code = "from flows.cli import app; app(prog_name='rollbook')"
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.stdout.split() == ["grpo,rec-oneside-nois"]
    assert algorithm_names("rec-oneside-n") == ["rec-oneside-nois"]


def test_questions_are_asked_on_a_terminal_until_the_answers_can_be(data: Path, tmp_path: Path) -> None:
    answers = ["nowhere", str(BASE), "mine.jsonl", "", "", "Q:{question}=", "regex", "", "gprpo", "grpo", ""]
    said = talk(["init"], answers, tmp_path)
    assert "nowhere: no such directory" in said and "did you mean" in said and "40 rows" in said
    config = load_config(tmp_path / "run.yaml")
    assert (config.train.algorithm, config.reward.components[0].grader) == ("grpo", "regex")


def test_whoever_stops_answering_has_nothing_written(data: Path, tmp_path: Path) -> None:
    said = talk(["init"], [str(BASE), "\x04"], tmp_path)
    assert "stopped; nothing is written" in said and "Traceback" not in said
    assert os.listdir(tmp_path) == ["mine.jsonl"]


def talk(arguments: Sequence[str], answers: Sequence[str], directory: Path) -> str:
    """Give one answer after each question that ends in a colon. Returns what the terminal showed."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(directory)
        os.execv(sys.executable, [sys.executable, "-m", "flows.cli", *arguments])
    shown, waiting = "", list(answers)
    while select.select([terminal], [], [], 60)[0]:
        try:
            part = os.read(terminal, 4096).decode()
        except OSError:
            break
        shown += part
        if shown.endswith(": ") and waiting:
            answer = waiting.pop(0)
            os.write(terminal, answer.encode() + (b"" if answer == "\x04" else b"\n"))
    os.kill(child, signal.SIGKILL)  # in vain, unless it waits for more
    os.waitpid(child, 0)
    os.close(terminal)
    return shown
