"""`rollbook import` and `rollbook export` as their users meet them: answers, JSON, and one message for what they can mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli import answer

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "pipeline" / "exchange" / "imports" / "fixtures"
BASE = ROOT / "data" / "base"


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """say("import", "x.jsonl", ...): exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = answer([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def _imported(say: Callable[..., tuple[int, str, str]], store: Path, *more: object) -> dict[str, Any]:
    code, out, err = say("import", FIXTURES / "nemo_rl", "--store", store, "--json", *more)
    assert code == 0, err
    return dict(json.loads(out))


def test_an_import_is_told_and_found_again(say: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    first = _imported(say, tmp_path / "store")
    assert (first["completions"], first["found"], first["format"]) == (8, False, "nemo-rl")
    assert _imported(say, tmp_path / "store") == {**first, "found": True}
    code, out, _ = say("import", FIXTURES / "nemo_rl", "--store", tmp_path / "store")
    assert code == 0 and "8 do not say how they were sampled" in out
    stated = _imported(say, tmp_path / "store", "--temperature", 1, "--top-p", 1, "--top-k", 0, "--min-p", 0)
    assert stated["without_sampling"] == 0 and stated["path"] != first["path"]


def test_import_show_and_audit_agree(say: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = _imported(say, tmp_path / "store")["path"]
    code, out, _ = say("show", path, "-n", 1, "--json")
    assert code == 0 and json.loads(out)["of"] == 8
    code, out, _ = say("audit", path, "--json")
    assert code == 0, out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("import", "nothing.jsonl", "-s", "s"), "nothing.jsonl: no such file or directory"),
        (("import", FIXTURES / "verl", "-s", "s"), "--model DIRECTORY"),
        (("import", FIXTURES / "verl", "-s", "s", "-f", "verll"), "expected one of art, atropos, expert"),
        (("import", FIXTURES / "verl", "-s", "s", "--map", "reward=score"), "not of format verl"),
        (("import", FIXTURES / "verl", "-s", "s", "--map", "reward"), "expected name=value"),
        (("import", FIXTURES / "verl", "-s", "s", "--reward-weight", "a=b"), "--reward-weight"),
        (("import", FIXTURES / "verl", "-s", "s", "-m", FIXTURES), "no config.json"),
        (("import", FIXTURES / "verl", "-s", "s", "-m", BASE, "--chat"), "chat template"),
        (("export", "nothing", "--to", "dataset", "--out", "out"), "not a finished artifact"),
        (("export", "nothing", "--to", "model", "--out", "out", "--min-reward", 1), "a model has no rewards"),
        (("export", "nothing", "--to", "sft", "--out", FIXTURES), "no export of rollbook"),
    ],
)
def test_what_can_be_mended_is_one_message(
    say: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = say(*arguments)
    assert (code, out) == (2, "") and told in " ".join(err.split())
    assert not list(tmp_path.glob("s/rollouts/*"))


def test_exports_say_what_they_wrote(say: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = _imported(say, tmp_path / "store")["path"]
    code, out, err = say("export", path, "--to", "dataset", "--out", tmp_path / "out", "--json")
    assert code == 0, err
    assert json.loads(out)["completions"] == 8
    code, out, _ = say("export", path, "--to", "sft", "--out", tmp_path / "out")
    assert code == 0 and "completions of rollouts" in out
    assert not (tmp_path / "out" / "data" / "part-00000.parquet").exists()
