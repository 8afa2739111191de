"""`rollbook label`: pairs of stored completions, a key for each, and a file that can be gone on with and imported."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli import answer
from pipeline.common.errors import UserError
from pipeline.regrade.pairs import LabelFile, pairs_of
from pipeline.store import Artifact


@pytest.fixture
def label(stored: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """label("1=q", "--pairs", "3"): the command, with these keys pressed."""

    def run(keys: str, *options: str) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{key}\n" for key in keys)))
        return answer(["label", str(stored.path), "--out", str(tmp_path / "labels.jsonl"), *options])

    return run


def labels_in(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "labels.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_pair_is_two_completions_of_one_prompt_that_differ(stored: Artifact) -> None:
    pairs = list(pairs_of(stored, seed=0))
    assert len({pair.group_id for pair in pairs}) == len(pairs) == 5
    assert all(pair.first != pair.second and pair.prompt == f"{pair.prompt_id.replace('p', 'q')}=" for pair in pairs)
    assert pairs == list(pairs_of(stored, seed=0))
    other = list(pairs_of(stored, seed=1))
    assert [pair.group_id for pair in other] != [pair.group_id for pair in pairs]


def test_keys_become_labels_in_the_order_of_the_pairs(label: Callable[..., int], stored: Artifact, tmp_path: Path) -> None:
    assert label("192=q") == 0  # 9 is no key, and is asked again
    first, second, equal = list(pairs_of(stored, seed=0))[:3]
    found = labels_in(tmp_path)
    assert [(one["chosen"], one["rejected"]) for one in found] == [
        (first.first, first.second),
        (second.second, second.first),
        (equal.first, equal.second),
    ]
    assert [(one["score_chosen"], one["score_rejected"]) for one in found] == [(1.0, 0.0), (1.0, 0.0), (0.5, 0.5)]
    assert [(one["chosen_index"], one["rejected_index"]) for one in found] == [first.indices, second.indices[::-1], equal.indices]
    assert {one["rollouts"] for one in found} == {stored.id}


def test_labelling_goes_on_where_it_ended_and_stops_at_the_number_wanted(
    label: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label("1q") == 0 and "1 of 5 pairs are labelled" in capsys.readouterr().out
    with (tmp_path / "labels.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"rollouts": "cut by a cra')
    assert label("1111", "--pairs", "3") == 0
    assert len({one["group_id"] for one in labels_in(tmp_path)}) == len(labels_in(tmp_path)) == 3
    assert label("1", "--annotator", "bob", "--pairs", "1") == 0  # somebody else's first
    assert [one["annotator"] for one in labels_in(tmp_path)] == ["", "", "", "bob"]


def test_what_is_skipped_comes_again(label: Callable[..., int], stored: Artifact, tmp_path: Path) -> None:
    assert label("s1q") == 0
    first, second = list(pairs_of(stored, seed=0))[:2]
    assert [one["group_id"] for one in labels_in(tmp_path)] == [second.group_id]
    assert label("1q") == 0
    assert [one["group_id"] for one in labels_in(tmp_path)] == [second.group_id, first.group_id]


def test_labels_are_imported_as_preferences(label: Callable[..., int], stored: Artifact, tmp_path: Path) -> None:
    from pipeline.exchange.imports.formats.preferences import Preferences

    assert label("1=q") == 0
    assert set(Preferences.signatures[0]) <= labels_in(tmp_path)[0].keys()
    command = ["import", str(tmp_path / "labels.jsonl"), "--format", "preference", "--store", str(tmp_path / "other")]
    assert answer([*command, "--model", str(Path(__file__).parents[3] / "data/base")]) == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.csv", None, "expected a name that ends with .jsonl"),
        ("labels.jsonl", '{"chosen": "a"}\n', "line 1: no label: expected a JSON object with rollouts, group_id"),
        ("labels.jsonl", "a\n", "line 1: no label"),
    ],
)
def test_another_file_is_not_written_into(stored: Artifact, tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        LabelFile(tmp_path / name, stored, "")
    assert not text or (tmp_path / name).read_text(encoding="utf-8") == text
