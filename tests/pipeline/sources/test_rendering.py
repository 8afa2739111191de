"""Prompts that leave no room for a completion: told with their row, set aside, and no part of what the others are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import DataError
from pipeline.config.run import RunConfig
from pipeline.prepare.check import check_config
from pipeline.run.answers import Local
from pipeline.run.order import only
from pipeline.run.processes import Processes
from pipeline.sources import rendering as room
from pipeline.sources.order import heldout_prompts_order, import_order, train_prompts_order
from pipeline.sources.rendering import Rendering
from pipeline.store import Artifact, Store, read_table
from schemas import Prompts, SetAside

BASE = Path(__file__).parents[3] / "data" / "base"
SHORT = [{"question": f"{n}+{n + 1}", "answer": str(2 * n + 1)} for n in range(1, 8)]
LONG = {"question": "1+" * 134 + "1", "answer": "135"}
Make = Callable[..., tuple[Artifact, Artifact]]


def write(name: str, rows: list[dict[str, str]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Callable[..., Any]) -> Callable[..., RunConfig]:
    """config({"engine.max_model_len": 256}): a run of the small model; its fourth training prompt is long."""
    monkeypatch.chdir(tmp_path)
    write("train.jsonl", [*SHORT[:3], LONG, *SHORT[3:6]])
    write("heldout.jsonl", SHORT[6:])
    fixed = {"model.path": str(BASE), "engine.max_model_len": 256, "data.template": "Q:{question}=", "run_dir": "run"}
    return lambda changes=None: RunConfig.model_validate(settings({**fixed, **(changes or {})}))


def prompts(config: RunConfig) -> tuple[Artifact, Artifact]:
    answers = Local(Store(config.store_url), Processes({}), Path("logs"))
    base = only(answers.answer(import_order(config)))
    train = only(answers.answer(train_prompts_order(config, base)))
    return train, only(answers.answer(heldout_prompts_order(config, base, train)))


SAID = r"train\.jsonl, line 4: the prompt has 272 tokens, and the context holds 256 with its completion; shorten it, or raise"


def test_a_prompt_that_does_not_fit_is_refused_with_its_row_before_anything_is_made(config: Any) -> None:
    for look in (check_config, prompts):
        with pytest.raises(DataError, match=SAID):
            look(config())
    assert not list(Path("run/artifacts").glob("prompts/*/manifest.json"))


def test_it_is_set_aside_and_check_says_so(config: Any) -> None:
    set_aside = config({"data.train.bad_rows": "set_aside"})
    (line,) = (line for line in check_config(set_aside) if line.startswith("set aside"))
    assert line.startswith("set aside  1 rows of train.jsonl: line 4, the prompt has 272 tokens")
    train, heldout = prompts(set_aside)
    assert read_table(train, Prompts)["question"].to_list() == [row["question"] for row in SHORT[:6]]
    assert json.loads(read_table(train, SetAside)["content"][0])["question"] == LONG["question"]
    assert heldout.summary == {"prompts": 1}


def test_taking_it_out_of_the_data_makes_nothing_anew(config: Any) -> None:
    set_aside = config({"data.train.bad_rows": "set_aside"})
    before = prompts(set_aside)
    write("train.jsonl", SHORT[:6])
    for after in (prompts(set_aside), prompts(config())):
        assert [artifact.path for artifact in after] == [artifact.path for artifact in before]
    shutil.rmtree("run/artifacts")  # nor does it matter which came first
    assert [artifact.id for artifact in prompts(config())] == [artifact.id for artifact in before]


def test_another_good_row_is_another_set_of_prompts(config: Any) -> None:
    set_aside = config({"data.train.bad_rows": "set_aside"})
    before = prompts(set_aside)[0]
    write("train.jsonl", [*SHORT[:3], {**LONG, "question": LONG["question"][:99]}, *SHORT[3:6]])
    after = prompts(set_aside)[0]
    assert (len(read_table(after, Prompts)), len(read_table(before, Prompts))) == (7, 6)
    assert after.manifest.content.key != before.manifest.content.key


def test_only_prompts_that_may_be_too_long_are_counted(
    save_tokenizer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a chat template too, whose own text counts."""
    template = "<s>{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    save_tokenizer(tmp_path, "bytes", chat_template=template)
    loaded: list[Path] = []
    load = room.load_tokenizer
    monkeypatch.setattr(room, "load_tokenizer", lambda path, **how: (loaded.append(path), load(path, **how))[1])
    chat = Rendering(str(tmp_path), "{question}", True, "Be brief.", False, 400)
    assert chat.misfits(["short"] * 5) == {} and not loaded
    found = chat.misfits(["short", "x" * 380, "x" * 300])
    assert list(found) == [1] and len(loaded) == 1
    text = chat.renderer()(["x" * 380])[0]
    assert text == "<s>[system]Be brief.[user]" + "x" * 380
    length = len(load(tmp_path, trust_remote_code=False)(text, add_special_tokens=False)["input_ids"])
    assert found[1].startswith(f"the prompt has {length} tokens, and the context holds 400 ")
    assert Rendering(str(tmp_path), "{question}", True, None, False, None).misfits(["x" * 9999]) == {}
