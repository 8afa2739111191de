"""Rewards from files and people: joined by their keys, refused with file, row and column where they are not sound."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.common.errors import DataError, UserError
from pipeline.config.reward import RewardComponent
from pipeline.rewards.graders.from_file import from_file
from pipeline.rewards.graders.human import human
from pipeline.rewards.graders.label_rows import escaped
from pipeline.rewards.graders.labels import Labels, completion_hash
from pipeline.rewards.items import RewardItem
from pipeline.rewards.registry import recipe_of, resolve

Write = Callable[[str, str], str]


def item(prompt: str = "p0", sample: int = 0, completion: str = "ab") -> RewardItem:
    return RewardItem(completion, "ab", {"prompt_id": prompt}, f"{prompt}@01234567", sample)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return to


ROWS = [("p0", 0, 0.5), ("p0", 1, -1.0), ("p1", 0, 2.0)]


@pytest.mark.parametrize("kind", ["csv", "semicolons", "tsv", "jsonl", "parquet"])
def test_rewards_are_joined_whatever_the_file(write: Write, tmp_path: Path, kind: str) -> None:
    frame = pl.DataFrame(ROWS, schema=["id", "n", "score"], orient="row")
    path = tmp_path / f"labels.{'csv' if kind == 'semicolons' else kind}"
    if kind == "jsonl":
        frame.write_ndjson(path)
    elif kind == "parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path, separator={"csv": ",", "semicolons": ";", "tsv": "\t"}[kind], include_bom=kind == "csv")
    grader = from_file(path=str(path), label="score", columns={"prompt_id": "id", "sample_index": "n"})
    scores = grader.grade([item("p1"), item("p0", 1), item("p0"), item("p7")])
    assert [score.score for score in scores] == [2.0, -1.0, 0.5, None]
    assert scores[3].error == f"{path.name}: no label with prompt_id p7, sample_index 0"


def test_a_spreadsheet_may_write_commas_for_decimal_points(write: Write) -> None:
    path = write("r.csv", "prompt_id;sample_index;reward\np0;0;0,5\np1;0;-1\n")
    assert [score.score for score in from_file(path=path).grade([item(), item("p1")])] == [0.5, -1.0]


def test_rewards_are_joined_by_group_and_by_the_completions_hash(write: Write) -> None:
    by_group = write("g.csv", "group_id,sample_index,reward\np0@01234567,0,1\n")
    assert from_file(path=by_group, by="group_id+sample_index").grade([item()])[0].score == 1.0
    by_hash = write("h.csv", f"completion_sha256,reward\n{hashlib.sha256('größer'.encode()).hexdigest()},3\n")
    assert from_file(path=by_hash, by="completion_sha256").grade([item(completion="größer")])[0].score == 3.0


def test_numbers_as_fractions_and_hashes_in_capitals_are_found(write: Write) -> None:
    """A data frame with an empty cell writes whole numbers as 0.0; some programs write hashes in capitals."""
    by_number = write("n.csv", "prompt_id,sample_index,reward\np0,1.0,3\np0, 0.0,2\n")
    assert [score.score for score in from_file(path=by_number).grade([item(), item(sample=1)])] == [2.0, 3.0]
    by_hash = write("h.csv", f"completion_sha256,reward\n{completion_hash('ab').upper()},3\n")
    assert from_file(path=by_hash, by="completion_sha256").grade([item()])[0].score == 3.0


def test_what_the_file_lacks_has_the_default(write: Write) -> None:
    path = write("r.csv", "prompt_id,sample_index,reward\np0,0,1\np0,1,\n")
    scores = from_file(path=path, missing=-0.5).grade([item(), item(sample=1), item("p9")])
    assert [score.score for score in scores] == [1.0, -0.5, -0.5]


def test_a_line_of_json_may_leave_out_what_is_empty(write: Write) -> None:
    """The first completion has neither label nor hash; the hash of the second is another's."""
    lines = (
        '{"prompt_id": "p0", "sample_index": 0}\n',
        '{"prompt_id": "p1", "sample_index": 0, "reward": 2, "completion_sha256": "00"}\n',
    )
    first, second = from_file(path=write("r.jsonl", "".join(lines))).grade([item(), item("p1")])
    assert first.error == "r.jsonl: no label with prompt_id p0, sample_index 0"
    assert second.error == "r.jsonl, line 2: labels another completion (its completion_sha256 differs)"


def test_a_label_of_another_completion_is_an_error(write: Write) -> None:
    path = write("r.csv", f"prompt_id,sample_index,reward,completion_sha256\np0,0,1,{completion_hash('xy')}\n")
    (score,) = from_file(path=path).grade([item()])
    assert score.score is None and score.error == "r.csv, row 2: labels another completion (its completion_sha256 differs)"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "r.csv",
            "prompt_id,sample_index,reward\np0,0,1\np0,1,2\np0,0,1\n",
            "row 2 and row 4: the same prompt_id and sample",
        ),
        ("r.csv", "prompt_id,sample_index,reward\np0,0,good\n", "row 2, column reward: found 'good', expected a finite number"),
        ("r.csv", "prompt_id,sample_index,reward\np0,0,nan\n", "row 2, column reward: found 'nan', expected a finite"),
        ("r.csv", "prompt_id,sample_index,reward\n,0,1\n", "row 2, column prompt_id: empty"),
        ("r.csv", "prompt_id,sample_index,reward\np0,0\n", "row 2: 2 cells, but the header has 3"),
        ("r.csv", 'prompt_id,sample_index,reward\np0,0,1\n"p1"x,0,1\n', "row 3: cannot be read: ',' expected after"),
        ("r.csv", 'prompt_id,sample_index,reward\np0,0,"0,5"\n', "row 2, column reward: found '0,5', expected a finite"),
        ("r.csv", "prompt,sample_index,reward\n", "no column 'prompt_id'; did you mean 'prompt'"),
        ("r.csv", "", "no column 'prompt_id'; it has none"),
        ("r.jsonl", '{"prompt_id": "p0", "sample_index": 0, "reward": 1}\n{"prompt_id"\n', "line 2: not valid JSON"),
        ("r.jsonl", '{"prompt_id": "p0", "sample_index": 0, "reward": 1}\n[1]\n', "line 2: expected an object, found list"),
        ("r.parquet", "PAR1", "r.parquet: cannot be read"),
        ("r.xlsx", "x", "unknown kind of file; labels are read from .csv"),
    ],
)
def test_a_file_that_is_not_sound_is_refused_with_its_place(write: Write, name: str, text: str, message: str) -> None:
    path = write(name, text)
    with pytest.raises(UserError) as caught:
        from_file(path=path)
    assert message in str(caught.value) and str(caught.value).startswith(path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "needs a value for args.path"),
        ({"path": "absent.csv"}, "absent.csv: no such file"),
        ({"path": "r.csv", "by": "prompt"}, "args.by: expected 'prompt_id+sample_index' or"),
        ({"path": "r.csv", "columns": {"id": "prompt_id"}}, "args.columns: 'id' is no column to find rows by"),
        ({"path": "r.csv", "values": {True: 1}}, "unless they are in quotes"),
        ({"path": "r.csv", "lable": "x"}, "unknown arg `lable`; did you mean `label`?"),
    ],
)
def test_wrong_args_are_refused_before_anything_starts(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write("r.csv", "prompt_id,sample_index,reward\n")
    with pytest.raises(UserError) as caught:
        resolve(RewardComponent.model_construct(grader="from_file", args=args))
    assert message in str(caught.value)


def test_the_recipe_has_the_files_hash_and_not_its_place(write: Write) -> None:
    path = write("r.csv", "prompt_id,sample_index,reward\np0,0,1\n")
    recipe = recipe_of(RewardComponent(grader="from_file", args={"path": path, "missing": 0.0}))
    assert recipe["args"] == {"missing": 0.0}
    assert recipe["source"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    write("r.csv", "prompt_id,sample_index,reward\np0,0,2\n")
    assert recipe_of(RewardComponent(grader="from_file", args={"path": path}))["source"] != recipe["source"]


def test_a_pool_adds_labels_to_other_graders(write: Write, grade: Any) -> None:
    path = write("r.csv", "prompt_id,sample_index,reward\np0,0,1\n")
    components = [RewardComponent(grader="from_file", weight=2.0, args={"path": path}), RewardComponent(grader="exact_match")]
    found = grade(components, [item(), item("p1")])
    assert (found[0].reward, found[0].components) == (3.0, {"reward_from_file": 1.0, "reward_exact_match": 1.0})
    assert found[1].reward is None and found[1].components == {"reward_from_file": None, "reward_exact_match": 1.0}
    assert found[1].error == "reward_from_file: r.csv: no label with prompt_id p1, sample_index 0"


def test_a_pool_refuses_a_file_that_is_not_sound(write: Write, grade: Any) -> None:
    path = write("r.csv", "prompt_id,sample_index,reward\np0,0,x\n")
    with pytest.raises(UserError, match=r"reward.components.0 \(from_file\): .*r.csv, row 2, column reward"):
        grade([RewardComponent(grader="from_file", args={"path": path})], [item()])


SHEET = "group_id,sample_index,label,annotator\n"


def test_several_annotators_are_averaged_and_their_agreement_is_told(write: Write) -> None:
    rows = [("p0", 1, "ada"), ("p0", 0, "bob"), ("p1", 1, "ada"), ("p1", 1, "bob"), ("p2", "", "ada")]
    path = write("s.csv", SHEET + "".join(f"{prompt}@01234567,0,{label},{who}\n" for prompt, label, who in rows))
    grader = human(path=path)
    assert [score.score for score in grader.grade([item(), item("p1")])] == [0.5, 1.0]
    (note,) = grader.notes
    assert note == (
        "s.csv: 4 labels of 2 completions by 2 annotators, 1 rows without; 2 labeled more than once, 50.0 % of pairs equal, "
        "Krippendorff's alpha 0.000"
    )


def test_alpha_is_krippendorffs(write: Write) -> None:
    """Worked out by hand: values 1,1 / 0,0 / 1,0: D_o = 2/6, D_e = 18/30, so alpha = 1 - 5/9."""
    rows = [(0, 1), (0, 1), (1, 0), (1, 0), (2, 1), (2, 0)]
    text = SHEET + "".join(f"g,{unit},{value},{'ab'[i % 2]}\n" for i, (unit, value) in enumerate(rows))
    found = Labels(Path(write("s.csv", text)), "group_id+sample_index", "label", {}, {}, "annotator").agreement()
    assert found is not None and found.alpha == pytest.approx(4 / 9) and found.equal == pytest.approx(2 / 3)


def test_one_annotator_may_not_label_a_completion_twice(write: Write) -> None:
    path = write("s.csv", SHEET + "g,0,1,ada\ng,0,1,bob\ng,0,0,ada\n")
    with pytest.raises(DataError, match="row 2 and row 4: the same group_id and sample_index, labeled twice by one annotator"):
        human(path=path)


def test_words_are_numbers_where_they_are_named(write: Write) -> None:
    path = write("s.csv", SHEET + "p0@01234567,0,good,ada\np1@01234567,0,bad,ada\n")
    scores = human(path=path, values={"good": 1, "bad": -1}).grade([item(), item("p1")])
    assert [score.score for score in scores] == [1.0, -1.0]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_no_cell_of_a_sheet_is_a_formula_and_keys_survive(tmp_path: Path, text: str) -> None:
    with (tmp_path / "s.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([SHEET.strip().split(","), [escaped(text), "0", "1", "ada"]])
    labels = Labels(tmp_path / "s.csv", "group_id+sample_index", "label", {}, {}, "annotator")
    assert escaped(text)[0] == "'" and labels.find([text, "0"], "") is not None
