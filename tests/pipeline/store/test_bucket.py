"""The same store in a bucket: a real S3 server on this machine (moto), real processes, and a server that is slow or fails."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.common.errors import IntegrityError, UserError
from pipeline.look.upkeep.bucket_inventory import BucketInventory
from pipeline.store import Artifact, Request, Store, Work, mirror, read_table
from pipeline.store import bucket as bucket_module
from pipeline.store.removed import Removal
from pipeline.store.store import load_artifact, verified
from schemas import Shaped

REQUEST = Request("shaped", "test/1", {"a": 1})
FOLDER = f"shaped/{REQUEST.key[:16]}"
ROWS = pl.DataFrame(
    {"group_id": ["g"], "sample_index": [0], "advantage": [0.5], "weight": [1.0], "keep": [True], "drop_reason": [None]},
    schema={name: column.dtype for name, column in Shaped.columns().items()},
)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """elsewhere("b"): from now on this process is on another machine: it has another cache."""
    return lambda name: monkeypatch.setenv("ROLLBOOK_CACHE", str(tmp_path / name))


def make(store: Store, request: Request = REQUEST, groups: str = "gh") -> Artifact:
    """An artifact with one part file per group."""
    with store.work(request) as work:
        if not isinstance(work, Work):
            return work
        for number, group in enumerate(groups):
            name = f"part-{number:05d}.parquet"
            if not work.has_table(name, Shaped):
                work.write_table(name, ROWS.with_columns(group_id=pl.lit(group)), Shaped)
        (work.path / "deep").mkdir(exist_ok=True)
        (work.path / "deep" / "timing.txt").write_text("1 s", encoding="utf-8")
        return work.finish({"kept": len(groups)}, outside_id=("deep/timing.txt",))


def wait_for(happened: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.01)


def test_an_artifact_has_the_same_id_in_a_bucket_and_in_a_directory(bucket: Any, store: Store) -> None:
    there, here = make(Store(bucket.url)), make(store)
    assert there.id == here.id
    assert there.url == f"{bucket.url}/{FOLDER}"
    assert here.url == str(here.path)
    assert sorted(key for key in bucket.objects() if not key.startswith("locks/")) == [
        f"{FOLDER}/{name}" for name in ("deep/timing.txt", "manifest.json", "part-00000.parquet", "part-00001.parquet")
    ]


def test_the_manifest_is_written_last(bucket: Any) -> None:
    make(Store(bucket.url))
    written = [path.rpartition("/")[2] for method, path in bucket.server.requests if method == "PUT" and FOLDER in path]
    assert written[-1] == "manifest.json"
    assert written.count("manifest.json") == 1
    assert set(written) == {"part-00000.parquet", "part-00001.parquet", "timing.txt", "manifest.json"}


def test_an_artifact_is_found_and_read_on_another_machine(bucket: Any, elsewhere: Callable[[str], None]) -> None:
    made = make(Store(bucket.url))
    elsewhere("other")
    store = Store(bucket.url)
    found = store.find(REQUEST)
    assert found is not None
    assert found.manifest == made.manifest
    assert found.path != made.path
    assert not found.path.exists(), "nothing but the manifest was fetched"
    assert read_table(found, Shaped)["group_id"].to_list() == ["g", "h"]
    assert not (found.path / "deep").exists(), "only the table was fetched"
    found.verify()
    assert (found.path / "deep" / "timing.txt").read_text(encoding="utf-8") == "1 s"
    assert [artifact.id for artifact in store.artifacts()] == [made.id]
    assert store.get(made.as_parent("shaped")).id == made.id
    assert make(store).id == made.id
    with pytest.raises(IntegrityError, match=r"s3://.*/some/prefix: no rollouts artifact with id ab \(x\)"):
        store.get(made.as_parent("x").model_copy(update={"kind": "rollouts", "id": "ab"}))


def test_an_artifact_is_opened_by_its_address_and_by_its_path_here(bucket: Any) -> None:
    made = make(Store(bucket.url))
    for place in (made.url, made.url + "/", Path(made.url), made.path, str(made.path)):
        assert (load_artifact(place).url, load_artifact(place).id) == (made.url, made.id)
        assert verified(place).path == made.path
    assert Store(made.path.parent.parent).url == bucket.url
    with pytest.raises(UserError, match=rf"{bucket.url}/shaped/nothing: not a finished artifact"):
        load_artifact(f"{bucket.url}/shaped/nothing")


def test_a_copy_here_that_changed_is_fetched_again(bucket: Any) -> None:
    made = make(Store(bucket.url))
    (made.path / "part-00000.parquet").write_bytes(b"x")
    (made.path / "part-00001.parquet").unlink()
    made.verify()
    assert read_table(made, Shaped)["group_id"].to_list() == ["g", "h"]


def test_a_changed_object_is_found(bucket: Any, elsewhere: Callable[[str], None]) -> None:
    made = make(Store(bucket.url))
    name, _, prefix = bucket.url.removeprefix("s3://").partition("/")
    key = f"{prefix}/{FOLDER}/part-00000.parquet"
    content = bytearray((made.path / "part-00000.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    elsewhere("other")
    for change, problem in (
        (lambda: bucket.client.put_object(Bucket=name, Key=key, Body=bytes(content)), "was changed after it was written"),
        (lambda: bucket.client.put_object(Bucket=name, Key=key, Body=b"x"), "has 1 bytes, the manifest says"),
        (lambda: bucket.client.delete_object(Bucket=name, Key=key), "listed in the manifest but missing"),
    ):
        change()
        with pytest.raises(IntegrityError, match=rf"{bucket.url}/{FOLDER}/part-00000\.parquet: {problem}.* Restore the object"):
            verified(made.url)


def test_resume_state_that_was_left_beside_a_manifest_can_be_deleted(bucket: Any) -> None:
    made = make(Store(bucket.url))
    name, _, prefix = bucket.url.removeprefix("s3://").partition("/")
    bucket.client.put_object(Bucket=name, Key=f"{prefix}/{FOLDER}/.resume/step-00000900/state", Body=bytes(900))
    backend = Store(bucket.url).backend
    assert isinstance(backend, mirror.BucketBackend)
    (left,) = BucketInventory(backend).temporary()
    assert (left.name, left.bytes) == (f"{FOLDER}/.resume", 900)
    assert ".resume/step-00000900/state" not in made.place.names()
    assert BucketInventory(backend).remove(left)
    assert BucketInventory(backend).temporary() == []
    made.verify()


@pytest.mark.parametrize("seconds", ["1m", "", "0", "-5", "nan", "inf"])
def test_a_lease_of_no_seconds_is_refused(bucket: Any, monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv("ROLLBOOK_LEASE_SECONDS", seconds)
    with pytest.raises(UserError, match=f"^ROLLBOOK_LEASE_SECONDS={seconds}: expected a number of seconds above 0$"):
        make(Store(bucket.url))


def test_keys_that_lead_out_of_the_cache_are_no_artifacts(bucket: Any) -> None:
    made = make(Store(bucket.url))
    name, _, prefix = bucket.url.removeprefix("s3://").partition("/")
    manifest = (made.path / "manifest.json").read_bytes()
    for key in ("shaped/../manifest.json", "../shaped/x/manifest.json", "..//manifest.json", "shaped/.hidden/manifest.json"):
        bucket.client.put_object(Bucket=name, Key=f"{prefix}/{key}", Body=manifest)
    assert [artifact.url for artifact in Store(bucket.url).artifacts()] == [made.url]
    with pytest.raises(UserError, match="not the address of an artifact"):
        load_artifact(f"{bucket.url}/shaped/..")


def test_work_goes_on_on_another_machine(bucket: Any, elsewhere: Callable[[str], None]) -> None:
    """The first machine is lost after one shard, in the middle of the second; nothing of it is left but the bucket."""
    whole = make(Store(f"{bucket.url}/whole"))
    with pytest.raises(ZeroDivisionError), Store(bucket.url).work(REQUEST) as work:
        assert isinstance(work, Work)
        work.write_table("part-00000.parquet", ROWS, Shaped)
        wait_for(lambda: f"{FOLDER}/part-00000.parquet" in bucket.objects())
        shutil.rmtree(os.environ["ROLLBOOK_CACHE"])
        raise ZeroDivisionError
    elsewhere("other")
    again = make(Store(bucket.url))
    assert again.id == whole.id
    sent = [path for method, path in bucket.server.requests if method == "PUT" and path.endswith(f"{FOLDER}/part-00000.parquet")]
    assert len(sent) == 2, "once for each store: the shard was fetched, not made and sent again"


def test_a_resume_point_outlives_the_machine(
    bucket: Any, elsewhere: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "KEEP_SECONDS", 0.0)

    def save(work: Work, step: int) -> None:
        point = work.scratch / f"step-{step}"
        point.mkdir(parents=True)
        (point / "model").write_text(f"after {step}", encoding="utf-8")
        (point / "adam").write_text(f"moments {step}", encoding="utf-8")
        work.keep(point)

    with pytest.raises(ZeroDivisionError), Store(bucket.url).work(REQUEST) as work:
        assert isinstance(work, Work)
        save(work, 1)
        work.place._keep_after = 0.0  # type: ignore[attr-defined]  # a save so soon after another is not sent
        save(work, 2)
        raise ZeroDivisionError
    kept = [key for key in bucket.objects() if ".resume" in key]
    assert sorted(key.rpartition(".resume/")[2] for key in kept) == ["kept.json", "step-2/adam", "step-2/model"]
    elsewhere("other")
    with Store(bucket.url).work(REQUEST) as work:
        assert isinstance(work, Work)
        assert [path.name for path in work.scratch.iterdir()] == ["step-2"]
        assert (work.scratch / "step-2" / "model").read_text(encoding="utf-8") == "after 2"
        assert (work.scratch / "step-2" / "adam").read_text(encoding="utf-8") == "moments 2"
        work.finish({})
    assert sorted(key for key in bucket.objects() if "locks" not in key) == [f"{FOLDER}/manifest.json"]


def test_a_large_file_is_sent_in_parts(bucket: Any, elsewhere: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "PART_BYTES", 5 << 20)
    content = os.urandom((11 << 20) + 3)
    with Store(bucket.url).work(REQUEST) as work:
        assert isinstance(work, Work)
        (work.path / "model.safetensors").write_bytes(content)
        made = work.finish({})
    assert sum("model.safetensors" in path and method == "PUT" for method, path in bucket.server.requests) == 3
    elsewhere("other")
    assert (verified(made.url).path / "model.safetensors").read_bytes() == content


def test_the_cache_is_bounded_and_spares_what_is_in_use(bucket: Any, start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three artifacts of 1 MiB in a cache of 2.5 MiB: the one that no process uses goes."""
    source = """
        for name in "ab":
            with store.work(Request("shaped", "test/1", dict(name=name))) as work:
                (work.path / "file").write_bytes(name.encode() * 2**20)
                say(work.finish({}).path)
    """
    out, _ = start(source, bucket.url).communicate(timeout=60)
    one, other = out.split()
    monkeypatch.setenv("ROLLBOOK_CACHE_GIB", str(2.5 / 1024))
    verified(one)  # this process uses it from now on
    with Store(bucket.url).work(Request("shaped", "test/1", {"name": "c"})) as work:
        assert isinstance(work, Work)
        work.require_space(2**20, "a file")
        (work.path / "file").write_bytes(b"c" * 2**20)
        work.finish({})
    assert (Path(one) / "file").exists()
    assert not Path(other).exists()
    verified(other)
    assert (Path(other) / "file").exists()


def test_removed_weights_leave_a_note_in_the_bucket(bucket: Any) -> None:
    store = Store(bucket.url)
    with store.work(Request("checkpoint", "train/1", {})) as work:
        assert isinstance(work, Work)
        for name in ("config.json", "model.safetensors"):
            (work.path / name).write_text(name)
        made = work.finish({})
    made.place.remove(Removal.now(["model.safetensors"], "keep: last 1"))
    assert made.place.names() == ["config.json", "manifest.json", "removed.json"]
    with pytest.raises(UserError, match=r"its weights were removed by retention \(keep: last 1\)"):
        load_artifact(made.url).verify()
