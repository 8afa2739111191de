"""Damaged artifacts: what is said of them, a new one without the broken shards, and the same one made anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pipeline.exchange.imports.stage import import_rollouts, order_of
from pipeline.generate.shards import remarks_name, remarks_of
from pipeline.look.upkeep.repair import drop_shards, find_damage, set_aside
from pipeline.store import Artifact, Request, Store, Work, read_table
from pipeline.store.store import load_artifact
from schemas import Remarks, Rollouts

Rollbook = Callable[..., tuple[int, str, str]]


def spoil(artifact: Path, name: str = "part-00001.parquet") -> None:
    data = bytearray((artifact / name).read_bytes())
    data[200] ^= 4
    (artifact / name).write_bytes(data)


def test_without_an_option_nothing_is_changed(rollbook: Rollbook, parts: dict[str, Path]) -> None:
    assert rollbook("repair", parts["rollouts"])[0] == 0
    spoil(parts["rollouts"])
    (parts["rollouts"] / "extra.bin").write_bytes(b"x")
    before = {path: path.read_bytes() for path in parts["rollouts"].iterdir()}
    status, out, err = rollbook("repair", parts["rollouts"])
    assert (status, err) == (1, "")
    assert "damaged   part-00001.parquet (2 rows): was changed after it was written" in out
    assert "unlisted  extra.bin" in out
    assert "writes a new artifact of the other 2 rows; 2 are lost" in out
    assert {path: path.read_bytes() for path in parts["rollouts"].iterdir()} == before
    status, out, _ = rollbook("repair", parts["rollouts"], "--json")
    assert (status, json.loads(out)["rows_left"]) == (1, 2)


def test_a_new_artifact_holds_the_whole_shards_and_says_what_was_dropped(parts: dict[str, Path]) -> None:
    damaged = load_artifact(parts["rollouts"])
    spoil(parts["rollouts"])
    before = (parts["rollouts"] / "part-00001.parquet").read_bytes()
    new = drop_shards(find_damage(damaged))
    new.verify()
    assert read_table(new, Rollouts)["group_id"].unique().to_list() == ["train-0@01234567"]
    assert new.summary["completions"] == 2 and new.summary["statuses"] == {"ok": 2} and new.summary["reward_mean"] == 0.5
    assert {parent.role: parent.id for parent in new.manifest.content.parents} == {
        **{parent.role: parent.id for parent in damaged.manifest.content.parents},
        "damaged": damaged.id,
    }
    (dropped,) = new.recipe["repair"]["dropped"]
    entry = damaged.files[1]
    assert (dropped["path"], dropped["sha256"], dropped["rows"]) == (entry.path, entry.sha256, 2)
    assert new.recipe["purpose"] == "train"
    assert (parts["rollouts"] / "part-00001.parquet").read_bytes() == before
    assert drop_shards(find_damage(damaged)).path == new.path


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """Three files of two completions without logprobs, their origins, and a row that was set aside."""
    monkeypatch.setattr("pipeline.exchange.imports.gather.SHARD_ROWS", 2)
    row = {"completion": "c", "completion_tokens": [2], "reward": 1.0}
    rows = [{**row, "prompt": f"p{prompt}", "prompt_tokens": [prompt]} for prompt in range(3) for _ in range(2)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"prompt": "p", "prompt_tokens": [1]}]), encoding="utf-8")
    return import_rollouts(Store(tmp_path / "imports"), order_of((source,), "plain"))[0]


@pytest.mark.parametrize(
    ("broken", "left"),
    [
        ("part-00001.parquet", {"part-00000", "part-00002", "origins-00000", "origins-00002", "set-aside"}),
        ("origins-00001.parquet", {"part-00000", "part-00002", "origins-00000", "origins-00002", "set-aside"}),
        ("set-aside.parquet", {f"{name}-0000{i}" for name in ("part", "origins") for i in range(3)}),
    ],
)
def test_a_shard_of_an_import_goes_with_its_origins(rollbook: Rollbook, imported: Artifact, broken: str, left: set[str]) -> None:
    spoil(imported.path, broken)
    rows = 2 * sum(name.startswith("part") for name in left)
    status, out, _ = rollbook("repair", imported.path)
    assert status == 1 and f"writes a new artifact of the other {rows} rows; {6 - rows} are lost" in out
    new = drop_shards(find_damage(imported))
    new.verify()
    assert {file.path.removesuffix(".parquet") for file in new.files} == left
    assert {file.path: file.table for file in new.files}.items() <= {file.path: file.table for file in imported.files}.items()
    counted = {"completions": rows, "without_logprobs": rows, "without_reward": 0, "without_sampling": rows, "retokenized": 0}
    assert {name: new.summary[name] for name in counted} == counted
    assert new.summary.get("set_aside") == (1 if "set-aside" in left else None)
    gone = {entry["path"]: entry["why"] for entry in new.recipe["repair"]["dropped"]}
    assert gone.keys() == {file.path for file in imported.files} - {file.path for file in new.files}
    assert [why for path, why in gone.items() if path != broken] == ["beside a shard that is dropped"] * (len(gone) - 1)


def test_what_no_run_makes_is_to_be_made_by_its_own_command(rollbook: Rollbook, imported: Artifact, tmp_path: Path) -> None:
    for number in range(3):
        spoil(imported.path, f"part-0000{number}.parquet")
    said = (
        f"No run makes it: move its directory away and repeat `rollbook import` as it was given (it read {tmp_path}/rows.jsonl)"
    )
    _, out, _ = rollbook("repair", imported.path)
    assert said in out and "--regenerate" not in out and "--drop-shards" not in out
    for way in ("--regenerate", "--drop-shards"):
        status, _, err = rollbook("repair", imported.path, way)
        assert status == 2 and said in err
    assert imported.path.exists()


@pytest.fixture
def judged(tmp_path: Path, parts: dict[str, Path]) -> Artifact:
    """Two files of rollouts with what a judge said of one completion of each."""
    with Store(tmp_path / "judged").work(Request("rollouts", "grade/1", {})) as work:
        assert isinstance(work, Work)
        for name in ("part-00000.parquet", "part-00001.parquet"):
            rows = pl.read_parquet(parts["rollouts"] / name)
            work.write_table(name, rows, Rollouts)
            work.write_table(remarks_name(name), remarks_of([(rows["group_id"][0], 0, {"reward_judge": "Right."})]), Remarks)
        return work.finish({})


def test_what_a_judge_said_stays_with_its_shard(judged: Artifact) -> None:
    spoil(judged.path, "remarks-00000.parquet")
    assert [file.path for file in drop_shards(find_damage(judged)).files] == [
        "part-00000.parquet",
        "part-00001.parquet",
        "remarks-00001.parquet",
    ]
    spoil(judged.path)
    new = drop_shards(find_damage(judged))
    assert [(file.path, file.table) for file in new.files] == [("part-00000.parquet", "rollouts/1")]


@pytest.mark.parametrize("missing", ["part-00000.parquet", "part-00001.parquet"])
def test_a_missing_shard_is_a_damaged_one(parts: dict[str, Path], missing: str) -> None:
    (parts["rollouts"] / missing).unlink()
    assert [broken.file.path for broken in find_damage(load_artifact(parts["rollouts"])).broken] == [missing]


def test_nothing_is_left_when_every_shard_is_broken(rollbook: Rollbook, parts: dict[str, Path]) -> None:
    spoil(parts["rollouts"], "part-00000.parquet")
    spoil(parts["rollouts"], "part-00001.parquet")
    status, _, err = rollbook("repair", parts["rollouts"], "--drop-shards")
    assert status == 2 and "no shard is whole, so nothing would be left. Try --regenerate" in err


def test_the_damaged_one_is_kept_and_its_whole_shards_wait_for_the_stage(parts: dict[str, Path]) -> None:
    place = parts["rollouts"]
    spoil(place)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    aside = Path(set_aside(find_damage(load_artifact(place))))
    assert aside == place.parent.parent / "damaged" / "rollouts" / place.name / "1"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {"part-00000.parquet": before["part-00000.parquet"]}


def test_a_run_makes_a_damaged_artifact_anew_with_the_id_it_had(
    rollbook: Rollbook, parts: dict[str, Path], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage is the real chain's; what stands for vLLM copies the shard that is missing."""
    place, whole = parts["rollouts"], finished.parent / "whole"
    shutil.copytree(place, whole)
    spoil(place)
    asked: list[tuple[str, int] | None] = []

    def chain(config: object, answers: object, until: tuple[str, int] | None = None, given: object = None) -> None:
        asked.append(until)
        for name in ("part-00001.parquet", "manifest.json"):
            shutil.copy(whole / name, place / name)

    monkeypatch.setattr("flows.commands.repair.chain", chain)
    status, out, err = rollbook("repair", place, "--regenerate")
    assert status == 0, err
    assert "It has the id it had: every byte is as it was" in out
    assert asked == [("generate", 0)]
    load_artifact(place).verify()
    spoil(place)
    status, out, err = rollbook("repair", place, "--regenerate", "--json")
    assert status == 0 and "It has the id it had" in err
    assert [broken["path"] for broken in json.loads(out)["broken"]] == ["part-00001.parquet"]


@pytest.mark.parametrize(
    ("role", "until"),
    [
        ("rollouts 0", ("generate", 0)),
        ("sampled 1", ("generate", 1)),
        ("evaluation 1", ("evaluate", 1)),
        ("shaped 0", ("shape", 0)),
        ("checkpoint 0", ("train", 0)),
    ],
)
def test_each_artifact_is_made_by_its_stage(finished: Path, parts: dict[str, Path], role: str, until: tuple[str, int]) -> None:
    from flows.commands.repair import stage_of
    from pipeline.look.show.subject import find_subject

    artifact: Artifact = load_artifact(parts[role])
    use = next(use for use in find_subject(str(finished)).uses if use.artifact.id == artifact.id)
    assert stage_of(use) == until


def test_an_artifact_without_its_run_cannot_be_made_anew(rollbook: Rollbook, parts: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(parts["rollouts"], tmp_path / "alone" / "rollouts" / ("a" * 16))
    spoil(tmp_path / "alone" / "rollouts" / ("a" * 16))
    status, _, err = rollbook("repair", tmp_path / "alone" / "rollouts" / ("a" * 16), "--regenerate")
    assert status == 2 and "lies in no run directory. Name the run that made it with --run" in err
