"""Every command that looks at artifacts, on a run whose store lies in a bucket (moto's server on this machine)."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from flows.cli import answer
from pipeline.look.audit.audit import audit
from pipeline.look.upkeep.repair import find_damage, set_aside
from pipeline.store import Request, Store, Work
from pipeline.store.store import load_artifact
from schemas.manifest import UNSEALED, sealed

PART = "part-00000.parquet"


@dataclass
class There:
    """The run of `made`, its artifacts moved into a bucket."""

    run: Path
    url: str
    bucket: Any
    record: dict[str, Any]

    def key(self, url: str, name: str = PART) -> dict[str, str]:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        return {"Bucket": bucket, "Key": f"{prefix}/{name}".lstrip("/")}

    def spoil(self, url: str, name: str = PART) -> None:
        """Flip a bit of an object."""
        place = self.key(url, name)
        data = bytearray(self.bucket.client.get_object(**place)["Body"].read())
        data[len(data) // 2] ^= 1
        self.bucket.client.put_object(**place, Body=bytes(data))

    def artifact(self, role: str) -> str:
        return str(self.record["iterations"][0][role]["path"])


@pytest.fixture
def there(made: Path, tmp_path: Path, bucket: Any) -> There:
    store = made / "artifacts"
    name, _, prefix = bucket.url.removeprefix("s3://").partition("/")
    for path in sorted(path for path in store.rglob("*") if path.is_file() and path.parent.name != "locks"):
        bucket.client.upload_file(str(path), name, f"{prefix}/{path.relative_to(store).as_posix()}")
    text = (made / "run.json").read_text(encoding="utf-8").replace('"artifacts/', f'"{bucket.url}/')
    record = {**json.loads(text), "seal": UNSEALED}
    record["config"] |= {"store": bucket.url, "run_dir": str(tmp_path / "run")}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(sealed(json.dumps(record, indent=2) + "\n"), encoding="utf-8")
    bucket.server.requests.clear()
    return There(tmp_path / "run", bucket.url, bucket, record)


@pytest.fixture
def rollbook(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """rollbook("show", path): status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(*command: object) -> tuple[int, str, str]:
        status = answer([str(argument) for argument in command])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


Rollbook = Callable[..., tuple[int, str, str]]


def copies() -> set[str]:
    """Names of the files that were left in the cache."""
    return {path.name for path in Path(os.environ["ROLLBOOK_CACHE"]).rglob("*") if path.is_file()}


def test_an_audit_says_the_same_as_of_the_store_in_a_directory(there: There, made: Path) -> None:
    here, found = audit(made / "artifacts"), audit(there.url)
    assert (found.status, found.kind, found.bytes) == (0, "store", here.bytes)
    assert found.counts == here.counts
    assert [replace(f, path=None) for f in found.findings] == [replace(f, path=None) for f in here.findings]
    assert found.figures == here.figures


@pytest.mark.slow
def test_a_run_whose_store_is_there_is_sound_in_depth(there: There) -> None:
    found = audit(there.run, deep=True, samples=4, steps=1)
    assert (found.status, found.kind) == (0, "run")
    counts = {count.what: (count.done, count.total) for count in found.counts}
    assert counts["artifacts that the record names"][0] == counts["artifacts that the record names"][1] > 0
    assert counts["training steps taken again"][0] == 1
    assert counts["weights that were looked at for NaN and infinity"] == (30, 30)


def test_every_object_is_read_once_and_weights_are_not_kept(there: There) -> None:
    assert audit(there.url).status == 0
    read = Counter(path for method, path in there.bucket.server.requests if method == "GET" and path.endswith(".parquet"))
    assert read and set(read.values()) == {1}
    assert PART in copies() and "tokenizer.json" in copies()
    assert not {name for name in copies() if name.endswith(".safetensors")}
    cache = Path(os.environ["ROLLBOOK_CACHE"])
    (directory,) = (path.parent for path in cache.glob("*/store.json"))
    assert audit(directory).kind == "store", "a directory of the cache stands for its bucket"


def test_what_changed_in_the_bucket_is_found_though_the_copies_here_are_whole(there: There) -> None:
    rollouts = there.artifact("rollouts")
    load_artifact(rollouts).verify()
    there.spoil(rollouts)
    found = audit(rollouts)
    assert (found.status, [f.check for f in found.findings if f.severity == "error"]) == (1, ["sha256"])
    there.bucket.client.delete_object(**there.key(rollouts))
    there.bucket.client.put_object(**there.key(there.url, "notes.txt"), Body=b"x")
    there.bucket.client.put_object(**there.key(rollouts, "extra.bin"), Body=b"x")
    found = audit(there.url)
    errors = {(f.check, f.artifact, f.file) for f in found.findings if f.severity == "error"}
    name = "/".join(rollouts.split("/")[-2:])
    assert errors == {("missing", name, PART), ("unlisted", None, "notes.txt"), ("unlisted", name, "extra.bin")}


def test_work_that_goes_on_is_a_note_and_nothing_is_deleted(there: There, rollbook: Rollbook) -> None:
    with Store(there.url).work(Request("shaped", "test/1", {})) as work:
        assert isinstance(work, Work)
        there.bucket.client.put_object(**there.key(there.url, f"shaped/{work.path.name}/{PART}"), Body=b"x")
        (unfinished,) = [f for f in audit(there.url).findings if f.check == "unfinished"]
        assert unfinished.severity == "note" and "A process is at work on it" in unfinished.remedy
        status, _, err = rollbook("gc", there.url, "--run", there.run, "--no-other-runs", "--delete")
        assert status == 2 and f"work goes on there (shaped-{work.path.name}: process {os.getpid()} on " in err
    (unfinished,) = [f for f in audit(there.url).findings if f.check == "unfinished"]
    assert unfinished.severity == "warning"


def test_what_is_no_store_in_a_bucket_ends_with_2(there: There, rollbook: Rollbook) -> None:
    bucket = there.url.removesuffix("/some/prefix")
    there.bucket.client.put_object(**there.key(bucket, "synced/artifacts/x"), Body=b"")
    for path, said in {
        "s3://no-such-bucket/x": "there is no such bucket",
        f"{bucket}/elsewhere": "nothing to audit. It has no folder such as",
        f"{bucket}/some": "nothing to audit. It has no folder such as",
        f"{bucket}/synced": f"Is it {bucket}/synced/artifacts?",
    }.items():
        status, out, err = rollbook("audit", path)
        assert (status, out) == (2, "") and said in err


def test_storage_that_is_away_is_no_finding(there: There, rollbook: Rollbook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    there.bucket.server.fault = lambda method, path: None if path.endswith(PART) else 0.0
    status, out, err = rollbook("audit", there.url)
    assert (status, out) == (2, "") and "the storage is out of reach" in err


def test_lineage_show_and_diff(there: There, rollbook: Rollbook) -> None:
    rollouts, shaped = there.artifact("rollouts"), there.artifact("shaped")
    id = load_artifact(shaped).id
    assert rollbook("lineage", there.run)[1].startswith("checkpoint ")
    assert rollbook("lineage", there.run, "--all")[1].startswith("evaluation ")
    assert "rollouts: rollouts " in rollbook("lineage", shaped)[1]
    nodes = json.loads(rollbook("lineage", id[:10], "--in", there.url, "--format", "json")[1])["nodes"]
    assert next(node["url"] for node in nodes if node["id"] == id) == shaped
    assert len(json.loads(rollbook("show", there.run, "-n", 3, "--json")[1])["rows"]) == 3
    assert len(json.loads(rollbook("show", rollouts, "-n", 2, "--json")[1])["rows"]) == 2
    assert {entry["kind"] for entry in json.loads(rollbook("show", there.url, "--json")[1])} >= {"rollouts", "checkpoint"}
    assert rollbook("diff", rollouts, rollouts)[0] == 0
    assert rollbook("diff", rollouts, there.artifact("sampled"))[0] == 1
    assert rollbook("diff", there.run, there.run)[0] == 0


@pytest.mark.needs("tensorboard")
def test_status_report_track_and_compare(there: There, rollbook: Rollbook) -> None:
    assert json.loads(rollbook("status", there.run, "--json")[1])["missing"] is None
    assert rollbook("report", there.run)[:2] == (0, f"{there.run / 'report.html'}\n")
    assert rollbook("report", there.run, "--markdown")[0] == 0
    assert rollbook("track", there.run, "--to", "tensorboard")[0] == 0
    status, out, err = rollbook("compare", there.run, "-a", "dpo", "--no-baseline", "--json")
    assert (status, err) == (0, "") and json.loads(out)["path"].startswith(there.url)


def test_sign_and_verify_look_at_the_objects(there: There, rollbook: Rollbook, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, rollouts = ec.generate_private_key(ec.SECP256R1()), there.artifact("rollouts")
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    Path("key.pem").write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))
    Path("key.pub").write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    assert "Name a directory for signatures" in rollbook("sign", there.run, "--key", "key.pem")[2]
    assert rollbook("sign", there.run, "--key", "key.pem", "--signatures", "signatures")[0] == 0
    verify = ("verify", there.run, "--key", "key.pub", "--signatures", "signatures")
    (load_artifact(rollouts).path / ".tmp-left").write_bytes(b"by a process that was killed")
    assert rollbook(*verify)[0] == 0
    there.bucket.client.put_object(**there.key(there.artifact("shaped"), "extra"), Body=b"x")
    there.spoil(rollouts)
    status, out, _ = rollbook(*verify)
    assert status == 1 and out.count("wrong  ") == 2
    assert f"{rollouts}/{PART}: was changed after it was written" in out and "/extra: not in the manifest" in out


def test_gc_deletes_what_no_run_needs(there: There, rollbook: Rollbook) -> None:
    with Store(there.url).work(Request("shaped", "shape/1", {"other": True})) as work:
        assert isinstance(work, Work)
        (work.path / "file").write_bytes(bytes(100))
        other = work.finish({})
    unfinished = f"rollouts/{'d' * 16}"
    there.bucket.client.put_object(**there.key(there.url, f"{unfinished}/{PART}"), Body=bytes(500))
    before = set(there.bucket.objects())
    assert "other runs may use this store" in rollbook("gc", there.run)[1]
    command = ("gc", there.run, "--no-other-runs", "--json")
    found = json.loads(rollbook(*command)[1])["deletable"]
    expected = {("unfinished", f"{there.url}/{unfinished}"), ("unreferenced", other.url)}
    assert {(item["reason"], item["path"]) for item in found} == expected
    assert set(there.bucket.objects()) == before
    assert rollbook(*command, "--delete")[0] == 0
    gone = before - set(there.bucket.objects())
    assert gone == {f"{unfinished}/{PART}", *(f"shaped/{other.path.name}/{name}" for name in ("file", "manifest.json"))}
    assert audit(there.run).status == 0
    assert json.loads(rollbook(*command)[1])["deletable"] == []


def test_repair_drops_shards_or_sets_the_artifact_aside(there: There, rollbook: Rollbook) -> None:
    rollouts = there.artifact("rollouts")
    assert rollbook("repair", rollouts)[0] == 0
    there.spoil(rollouts)
    status, out, _ = rollbook("repair", rollouts)
    assert status == 1 and f"damaged   {PART}" in out and "--drop-shards" in out
    status, out, _ = rollbook("repair", rollouts, "--drop-shards")
    new = load_artifact(out.split("written: ")[1].split()[0])
    assert status == 0 and new.url.startswith(there.url)
    assert rollbook("audit", new.url)[0] == 0
    assert "Name the run that made it with --run" in rollbook("repair", rollouts, "--regenerate")[2]
    aside = set_aside(find_damage(load_artifact(rollouts)))
    name = "/".join(rollouts.split("/")[-2:])
    assert aside == f"{there.url}/damaged/{name}/1"
    left = [key for key in there.bucket.objects() if key.startswith(name)]
    assert left == [f"{name}/part-00001.parquet"], "the whole shard, to go on from"
    kept = [key.rpartition("/")[2] for key in there.bucket.objects() if key.startswith("damaged/")]
    assert kept == ["manifest.json", PART, "part-00001.parquet"]
