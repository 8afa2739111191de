"""The command line as a user meets it, most of all when something is wrong: one message, no traceback, exit status 2."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import yaml

from pipeline.config.run import RunConfig
from pipeline.run.record import save_run
from pipeline.run.state import Run

Rollbook = Callable[..., Any]
NO_JSON = '{"question": "1+1", "answer": "2"}\n{"question": \n'


class Wrong(NamedTuple):
    """Something wrong with a project that is otherwise right, and what must be said of it."""

    said: str
    """Part of the message: the file or the key, and what is wrong."""
    sets: tuple[str, ...] = ()
    """--set texts."""
    files: dict[str, str | bytes | None] = {}
    """Files that are written, or removed."""


def component(**settings: Any) -> str:
    return f"reward.components={json.dumps([settings])}"


WRONG_CONFIG = {
    "unknown key": Wrong("train.epoch: unknown key; did you mean `epochs`?", ("train.epoch=3",)),
    "unknown section": Wrong("trian: unknown key; did you mean `train`?", ("trian.epochs=3",)),
    "value out of range": Wrong("train.epochs: Input should be greater than or equal to 1 (found 0)", ("train.epochs=0",)),
    "value of another type": Wrong("generate.samples: Input should be a valid integer", ("generate.samples=many",)),
    "infinite value": Wrong("train.learning_rate: Input should be a finite number (found inf)", ("train.learning_rate=.inf",)),
    "missing section": Wrong("reward: missing, and it has no default", files={"run.yaml": "name: a\nmodel: {path: model}\n"}),
    "--set without a value": Wrong("--set train.epochs: expected key=value", ("train.epochs",)),
    "--set into a value": Wrong("--set name.first=x: name is not a section", ("name.first=x",)),
    "--set of no YAML": Wrong("--set evaluate.k=[1: the value is not valid YAML", ("evaluate.k=[1",)),
    "--set of an object": Wrong("the value is not valid YAML", ("store=!!python/object/apply:os.getcwd []",)),
    "no YAML": Wrong("run.yaml: not valid YAML", files={"run.yaml": "name: [\n"}),
    "repeated key": Wrong("run.yaml: not valid YAML: the key 'name' is there twice", files={"run.yaml": "name: a\nname: b\n"}),
    "empty config": Wrong("run.yaml: expected a mapping such as `name: demo`, found NoneType", files={"run.yaml": ""}),
    "no config": Wrong("run.yaml: no such config file", files={"run.yaml": None}),
    "unknown algorithm": Wrong(
        "train.algorithm: no algorithm 'reinforc'; did you mean 'reinforce'?", ("train.algorithm=reinforc",)
    ),
    "unknown algorithm setting": Wrong(
        "train.algorithm_args: rec-oneside-nois has no setting 'lo'", ("train.algorithm_args.lo=1",)
    ),
    "bad algorithm setting": Wrong("train.algorithm_args: low", ("train.algorithm_args.low=much",)),
    "unknown grader": Wrong(
        "reward.components.0 (exact): no such grader; did you mean exact_match?", (component(grader="exact"),)
    ),
    "unknown grader module": Wrong("reward.components.0 (mine:grade): no module 'mine'", (component(grader="mine:grade"),)),
    "unknown grader argument": Wrong("unknown arg `patern`", (component(grader="regex", args={"patern": "x"}),)),
    "two components of one name": Wrong("two components write reward_regex", (f"reward.components={[{'grader': 'regex'}] * 2}",)),
    "impossible k": Wrong("evaluate: k=9 needs between 1 and samples=2", ("evaluate.k=[9]",)),
    "cut support": Wrong("generate: rec-oneside-is needs", ("train.algorithm=rec-oneside-is", "generate.top_p=0.9")),
    "no such model": Wrong("model.path: no directory nowhere", ("model.path=nowhere",)),
    "model that cannot be had": Wrong(
        "model.path: no-such-owner/no-such-model is no local", ("model.path=no-such-owner/no-such-model",)
    ),
    "no model in the directory": Wrong("model: not a Hugging Face model directory", files={"model/config.json": None}),
    "broken tokenizer": Wrong("model/tokenizer.json: cannot be read: ", files={"model/tokenizer.json": "{}"}),
    "broken model config": Wrong("model/config.json: not valid JSON", files={"model/config.json": "{"}),
    "model config of another shape": Wrong("model/config.json: expected a JSON object", files={"model/config.json": "[]"}),
    "pickled weights": Wrong(
        "model: no .safetensors weights. Pickled weights are not read",
        files={"model/model.safetensors": None, "model/pytorch_model.bin": b"\x80\x04"},
    ),
}
"""What is found without opening the prompts."""

WRONG_DATA = {
    "no such prompts": Wrong("nowhere.jsonl: no such file or directory", ("data.train.path=nowhere.jsonl",)),
    "empty prompts": Wrong("train.jsonl: no rows", files={"train.jsonl": ""}),
    "prompts that are not JSON": Wrong("train.jsonl, line 2: not valid JSON", files={"train.jsonl": NO_JSON}),
    "prompts that are not Parquet": Wrong("x.parquet: cannot be read", ("data.train.path=x.parquet",), {"x.parquet": b"PAR1"}),
    "wrong column": Wrong("heldout.jsonl: no column 'solution' for the answer", ("data.heldout.answer=solution",)),
    "missing answer": Wrong(
        "train.jsonl, line 1: breaks the rule: answer is not empty", files={"train.jsonl": '{"question": "a", "answer": ""}'}
    ),
    "unmatched answer": Wrong("train.jsonl, line 1: column answer does not match", ("data.train.answer_pattern='#### (.+)$'",)),
    "repeated prompt": Wrong(
        "train.jsonl, line 2: repeats line 1", files={"train.jsonl": '{"question": "a", "answer": "1"}\n' * 2}
    ),
    "overlap": Wrong("train.jsonl: 1 held-out questions are also in train.jsonl", ("data.heldout.path=train.jsonl",)),
    "template without the question": Wrong("data.template: has no {question} in it", ("data.template='Q:'",)),
}
WRONG = {**WRONG_CONFIG, **WRONG_DATA}


def arrange(project: Path, wrong: Wrong) -> list[str]:
    """Make the project wrong. Returns the --set arguments."""
    for name, content in wrong.files.items():
        if content is None:
            (project / name).unlink()
        else:
            (project / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return [argument for override in wrong.sets for argument in ("--set", override)]


def refuse(said: Any, expected: str) -> None:
    """The command ended as it should: status 2, and one message that says what is wrong."""
    assert "Traceback" not in said.err + said.out
    assert said.status == 2, said
    assert said.err.startswith("rollbook: "), said.err
    assert said.err.count("rollbook: ") == 1
    assert expected in said.err
    assert said.out == ""


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_check_refuses(rollbook: Rollbook, project: Path, wrong: Wrong) -> None:
    refuse(rollbook("check", "run.yaml", *arrange(project, wrong)), wrong.said)


@pytest.mark.parametrize(
    "name", ["unknown key", "unknown algorithm", "unknown grader", "no such model", "no such prompts", "overlap"]
)
def test_run_refuses_the_same_before_it_starts_anything(rollbook: Rollbook, project: Path, name: str) -> None:
    refuse(rollbook("run", "run.yaml", *arrange(project, WRONG[name])), WRONG[name].said)
    assert not (project / "runs").exists()


def test_a_run_of_fewer_iterations_says_what_the_record_loses(
    rollbook: Rollbook, project: Path, make_config: Callable[..., RunConfig]
) -> None:
    save_run(Run(make_config({"iterations": 4})), project / "runs" / "small")
    wrong = ("run", "run.yaml", *arrange(project, WRONG["no such prompts"]), "--set", "run_dir=runs/small")
    said = "runs/small is recorded with iterations=4, this is for 3. Later rounds stay in the store"
    assert said in rollbook(*wrong, "--set", "iterations=3").err
    assert "is recorded with" not in rollbook(*wrong, "--set", "iterations=4").err


def test_the_version_is_said_with_its_commit(rollbook: Rollbook) -> None:
    said = rollbook("--version")
    assert (said.status, said.err) == (0, "")
    assert re.fullmatch(r"rollbook \d+\.\d+\.\d+(, commit [0-9a-f]{12})?\n", said.out)


def test_the_launcher_of_a_checkout_names_what_is_missing(tmp_path: Path) -> None:
    launcher = shutil.copy(Path(__file__).parents[2] / "rollbook", tmp_path / "rollbook")
    said = subprocess.run([launcher, "--version"], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (2, "")
    assert f"no environment in {tmp_path}/.venv yet; `make setup` makes it" in said.stderr


def test_check_says_what_it_found(rollbook: Rollbook, project: Path) -> None:
    said = rollbook("check", "run.yaml", "--set", "iterations=3", "--set", "generate.samples=4")
    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == "model      model (Qwen2ForCausalLM)"
    assert lines[1] == "prompts    1 for training, 1 held out"
    assert "run        3 x 128 x 4 in runs/small" in lines
    assert lines[-1] == "ok, with 1 warning"
    assert not (project / "runs").exists()


def test_rows_that_are_set_aside_and_warnings_are_called_so(rollbook: Rollbook, project: Path) -> None:
    (project / "train.jsonl").write_text('{"question": "1+1", "answer": "2"}\n{"question": "3"}\n', encoding="utf-8")
    config = yaml.safe_load((project / "run.yaml").read_text(encoding="utf-8"))
    config["data"]["train"]["bad_rows"] = "set_aside"
    config["train"] = {"algorithm": "reinforce", "epochs": 4}
    (project / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    found = {each["what"]: each["found"] for each in json.loads(rollbook("check", "run.yaml", "--json").out)["found"]}
    assert found["set aside"].startswith("1 rows of train.jsonl: line 2")
    levels = {each["what"]: each["level"] for each in json.loads(rollbook("doctor", "run.yaml", "--json").out)}
    assert (levels["warning"], levels["set aside"]) == ("warning", "ok")


def test_an_overlap_may_be_allowed(rollbook: Rollbook, project: Path) -> None:
    said = rollbook("check", "run.yaml", "--set", "data.heldout.path=train.jsonl", "--set", "data.allow_overlap=true")
    assert (said.status, said.out.splitlines()[-1]) == (0, "ok, with 1 warning")


def test_prompts_may_be_parquet(rollbook: Rollbook, project: Path) -> None:
    pl.DataFrame({"question": ["a", "b"], "answer": ["1", "2"]}).write_parquet(project / "train.parquet")
    said = rollbook("check", "run.yaml", "--set", "data.train.path=train.parquet")
    assert (said.status, said.out.splitlines()[1]) == (0, "prompts    2 for training, 1 held out")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("status", "nowhere"), "nowhere: no run there (it has no run.json). Name a run directory such as runs/demo"),
        (("status", "model"), "model: no run there"),
        (
            ("status", "run.yaml"),
            "run.yaml: a config; its run is the directory runs/small, which `rollbook run run.yaml` begins. Name that",
        ),
        (("report", "nowhere"), "nowhere: no run there"),
        (("algorithms", "gpro"), "no algorithm 'gpro'"),
        (("train", "run.yaml", "--iteration", "1"), "--iteration 1: this run has iterations=1"),
        (("shape", "run.yaml", "-i", "5"), "--iteration 5: this run has iterations=1"),
        (("generate", "run.yaml", "-i", "2"), "--iteration 2: this run has iterations=1"),
        (("spec", "run.yaml", "train.json", "-i", "1"), "--iteration 1: this run has iterations=1"),
        (("run", "model"), "model: a directory, and not a run's YAML file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_refuses(rollbook: Rollbook, project: Path, arguments: tuple[str, ...], expected: str) -> None:
    refuse(rollbook(*arguments), expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("check",), "Missing argument"),
        (("chek", "run.yaml"), "No such command 'chek'"),
        (("check", "run.yaml", "--sett", "a=b"), "No such option: --sett"),
        (("check", "run.yaml", "--set"), "Option '--set' requires an argument"),
        (("check", "run.yaml", "more"), "unexpected extra argument"),
        (("train", "run.yaml", "-i", "-1"), "'--iteration' / '-i'"),
        (("train", "run.yaml", "-i", "last"), "'--iteration' / '-i'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_told_with_the_usage(rollbook: Rollbook, project: Path, arguments: tuple[str, ...], expected: str) -> None:
    said = rollbook(*arguments)
    assert "Traceback" not in said.err
    assert (said.status, said.out) == (2, "")
    assert expected in said.err


def test_help_names_every_command(rollbook: Rollbook, project: Path) -> None:
    said = rollbook("--help")
    assert (said.status, said.err) == (0, "")
    for command in ("run", "check", "generate", "evaluate", "shape", "train", "status", "report", "algorithms"):
        assert f" {command} " in said.out


def test_status_shows_a_run_that_has_begun(rollbook: Rollbook, project: Path, make_config: Callable[..., RunConfig]) -> None:
    save_run(Run(make_config(), missing="prompts"), project / "runs" / "small")
    said = rollbook("status", "runs/small")
    assert (said.status, said.err) == (0, "")
    assert "next:      prompts" in said.out
    machines = rollbook("status", "runs/small", "--json")
    assert json.loads(machines.out)["name"] == "small"


def test_a_report_goes_where_it_was_told_to(rollbook: Rollbook, project: Path, make_config: Callable[..., RunConfig]) -> None:
    save_run(Run(make_config(), missing="prompts"), project / "runs" / "small")
    assert rollbook("report", "runs/small/run.json").out == "runs/small/report.html\n"
    assert rollbook("report", "runs/small", "--markdown", "--out", "new/place.md").status == 0
    assert (project / "new" / "place.md").read_text(encoding="utf-8").startswith("### small\n")
    said = rollbook("report", "runs/small", "--markdown", "--out", "runs")
    assert (said.status, said.err.count("rollbook: runs: cannot be written: Is a directory")) == (1, 1)


def test_algorithms_are_listed_for_people_and_machines(rollbook: Rollbook, project: Path) -> None:
    assert "rec-oneside-nois" in rollbook("algorithms").out
    listed = json.loads(rollbook("algorithms", "--json").out)
    assert {"reinforce", "grpo", "rec-oneside-nois"} <= {algorithm["name"] for algorithm in listed}
    assert "formula" in rollbook("algorithms", "grpo").out


def test_the_installed_command_does_the_same(project: Path) -> None:
    command = Path(sys.executable).with_name("rollbook")
    if not command.exists():
        pytest.skip("the package is not installed beside this interpreter")
    done = subprocess.run([command, "check", "run.yaml"], cwd=project, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "ok, with 1 warning")
    wrong = subprocess.run([command, "check", "run.yaml", "--set", "train.epoch=3"], cwd=project, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.endswith("train.epoch: unknown key; did you mean `epochs`?\n")
