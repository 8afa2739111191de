"""Damaged artifacts: what is said of them, a new one without the broken shards, and the same one made anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artifacts import Artifact, read_table
from pipeline.artifacts.store import load_artifact
from pipeline.inspect.repair import drop_shards, find_damage, set_aside
from schemas import Rollouts

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

    def chain(config: object, stages: object, until: tuple[str, int] | None = None) -> None:
        asked.append(until)
        for name in ("part-00001.parquet", "manifest.json"):
            shutil.copy(whole / name, place / name)

    monkeypatch.setattr("flows.repair.chain", chain)
    status, out, err = rollbook("repair", place, "--regenerate")
    assert status == 0, err
    assert "It has the id it had: every byte is as it was" in out
    assert asked == [("generate", 0)]
    load_artifact(place).verify()


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
    from flows.repair import stage_of
    from pipeline.inspect.places import find_place

    artifact: Artifact = load_artifact(parts[role])
    use = next(use for use in find_place(str(finished)).uses if use.artifact.id == artifact.id)
    assert stage_of(use) == until


def test_an_artifact_without_its_run_cannot_be_made_anew(rollbook: Rollbook, parts: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(parts["rollouts"], tmp_path / "alone" / "rollouts" / ("a" * 16))
    spoil(tmp_path / "alone" / "rollouts" / ("a" * 16))
    status, _, err = rollbook("repair", tmp_path / "alone" / "rollouts" / ("a" * 16), "--regenerate")
    assert status == 2 and "lies in no run directory. Name the run that made it with --run" in err
