"""The mix stage, on shaped tables on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.config.run import RunConfig
from pipeline.run.process import Reporter
from pipeline.shape.mix.order import mix_request
from pipeline.shape.mix.stage import Lots, mix
from pipeline.store import Artifact, Request, Store, Work, read_table
from pipeline.store.store import load_artifact
from schemas import Pairs, Shaped

Mix = Callable[..., Artifact]
GROUPS = [f"g{number}" for number in range(10)]


def rows_of(group: str) -> list[dict[str, Any]]:
    """Two kept rows and one that was dropped; of g9 none is kept."""
    keep = group != "g9"
    kept = {"advantage": 0.5 * keep, "weight": 2.0 * keep, "keep": keep, "drop_reason": None if keep else "zero_variance"}
    dropped = {"advantage": 0.0, "weight": 0.0, "keep": False, "drop_reason": "truncated"}
    return [{"group_id": group, "sample_index": n, **(kept if n < 2 else dropped)} for n in range(3)]


@pytest.fixture
def shaped(store: Store) -> Callable[..., Artifact]:
    """shaped(groups by file): a table with pairs."""

    def make(*files: list[str]) -> Artifact:
        with store.work(Request("shaped", "shape/1", {"files": files})) as work:
            if not isinstance(work, Work):
                return work
            for number, groups in enumerate(files):
                frame = pl.DataFrame([row for group in groups for row in rows_of(group)], schema=_types(Shaped))
                work.write_table(f"part-{number:05d}.parquet", frame, Shaped)
                pair = {"chosen_index": 0, "rejected_index": 1, "preference": 1.0, "margin": 1.0}
                pairs = pl.DataFrame([{"group_id": group, **pair} for group in groups if group != "g9"], schema=_types(Pairs))
                work.write_table(f"pairs-{number:05d}.parquet", pairs, Pairs)
            return work.finish({"kept_groups": 9, "groups": 10})

    return make


def _types(table: Any) -> dict[str, pl.DataType]:
    return {name: column.dtype for name, column in table.columns().items()}


@pytest.fixture
def run(store: Store, make_config: Callable[..., RunConfig], make_artifact: Callable[..., Artifact]) -> Mix:
    """run(shaped, groups, iteration, seed, loss_weight): the table with the groups that were drawn."""

    def make(shaped: Artifact, groups: int, iteration: int = 3, seed: int = 0, loss_weight: float = 1.0) -> Artifact:
        config = make_config({"seed": seed, "replay": {"iterations": 1, "loss_weight": loss_weight}})
        request = mix_request(config, iteration, make_artifact("rollouts"), shaped, groups)
        spec = {"store": str(store.root), "jobs": [{"request": request.to_json(), "shaped": str(shaped.path)}]}
        return load_artifact(mix(spec, Reporter(os.open(os.devnull, os.O_WRONLY)))["artifacts"][0])

    return make


def kept(artifact: Artifact) -> set[str]:
    return set(read_table(artifact, Shaped).filter("keep")["group_id"])


def test_groups_are_drawn_whole_and_the_others_say_why(shaped: Callable[..., Artifact], run: Mix) -> None:
    mixed = run(shaped(GROUPS[:5], GROUPS[5:]), 4)
    mixed.verify()
    table = read_table(mixed, Shaped)
    assert len(kept(mixed)) == 4
    assert [path.name for path in mixed.tables("shaped")] == ["part-00000.parquet", "part-00001.parquet"]
    for group in GROUPS:
        rows = table.filter(group_id=group)
        reason = None if group in kept(mixed) else "zero_variance" if group == "g9" else "not_drawn"
        assert rows["drop_reason"].to_list() == [reason, reason, "truncated"]
        assert rows["weight"].to_list() == ([2.0, 2.0, 0.0] if reason is None else [0.0] * 3)
        assert rows["advantage"].to_list() == ([0.5, 0.5, 0.0] if reason is None else [0.0] * 3)
    assert mixed.summary["dropped"] == {"not_drawn": 10, "truncated": 10, "zero_variance": 2}
    assert (mixed.summary["kept"], mixed.summary["kept_groups"], mixed.summary["groups"]) == (8, 4, 10)
    assert set(read_table(mixed, Pairs)["group_id"]) == kept(mixed)


def test_the_loss_of_replayed_completions_can_be_weighed(shaped: Callable[..., Artifact], run: Mix) -> None:
    table = read_table(run(shaped(GROUPS), 9, loss_weight=0.25), Shaped)
    assert set(table.filter("keep")["weight"]) == {0.5}
    assert table["keep"].sum() == 18


def test_the_draw_follows_from_seed_iteration_and_group_alone(shaped: Callable[..., Artifact], run: Mix) -> None:
    whole, cut = shaped(GROUPS), shaped(GROUPS[7:], GROUPS[:7][::-1])
    assert kept(run(whole, 4)) == kept(run(cut, 4))
    assert kept(run(whole, 4)) < kept(run(whole, 6))
    others = [kept(run(whole, 4, iteration=4)), kept(run(whole, 4, seed=1)), kept(run(whole, 4))]
    assert len({str(sorted(groups)) for groups in others}) == 3


def draw(place: Path, count: int, seed: int = 0) -> list[str]:
    with Lots(place / "lots", seed, iteration=0) as lots:
        lots.add(GROUPS[:3])
        lots.add(GROUPS[3:])
        return lots.drawn(GROUPS, lots.last(count))


def test_every_group_is_drawn_about_as_often(tmp_path: Path) -> None:
    counts = dict.fromkeys(GROUPS, 0)
    for seed in range(400):
        for group in draw(tmp_path, 5, seed):
            counts[group] += 1
    assert all(160 < count < 240 for count in counts.values())


def test_as_many_are_drawn_as_were_asked_for(tmp_path: Path) -> None:
    assert [len(draw(tmp_path, count)) for count in (0, 1, 9, 10, 11)] == [0, 1, 9, 10, 10]
    assert list(tmp_path.iterdir()) == []


def test_lots_that_begin_alike_are_told_apart_by_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lots, "of", lambda self, group: b"\x80" * 8 + bytes(7) + group[-1:].encode())
    assert draw(tmp_path, 4) == GROUPS[:4]


def test_files_of_an_interrupted_attempt_are_made_again_to_the_same_bytes(shaped: Callable[..., Artifact], run: Mix) -> None:
    whole = shaped(GROUPS[:5], GROUPS[5:])
    done = run(whole, 4)
    (done.path / "manifest.json").unlink()
    done.tables("shaped")[1].unlink()
    assert run(whole, 4).id == done.id
