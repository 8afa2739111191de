"""The tamper matrix: seeded single changes of a real run's store, each of which `rollbook audit` must find.

    python benchmarks/tamper.py --changes 1200 --out benchmarks/results/tamper.json

If it is stopped, the same command goes on with the change that was missing.

Makes a small run with every kind of artifact (or takes --run), and audits it untouched before and after. Changes: a bit flipped
in any file, a file deleted, truncated, lengthened, renamed, swapped with another, replaced by a link, or added; a directory
renamed or deleted; a manifest edited with its hashes made anew, so that only what was made from it can tell; the run's record
edited likewise. Left out, since they are no evidence: locks, logs, reports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.look.audit.audit import audit
from pipeline.store.files import sha256_of, write_text
from schemas.manifest import Manifest, digest, sealed

ROLLBOOK = str(Path(sys.executable).parent / "rollbook")
SETTINGS = {"iterations": 1, "generate.prompts": 12, "generate.samples": 4, "generate.shard_groups": 6, "data.train.limit": 64}
SETTINGS |= {"data.heldout.limit": 12, "evaluate.samples": 2, "evaluate.k": "[1,2]", "train.epochs": 1}
MANIFEST, RECORD = "manifest.json", "run.json"
RESULT = ("changes", "found", "by_kind", "missed", "untouched")
"""What `matrix` returns."""
Random = random.Random
Change = Callable[["Tamperer"], "tuple[str, list[Path]] | None"]


class Tamperer:
    """A run that is changed and put back, one change at a time.

    Args:
        pristine: the run; never touched.
        working: a copy of it that is changed.
    """

    def __init__(self, pristine: Path, working: Path, seed: int) -> None:
        self.pristine, self.run, self.random = pristine, working, Random(seed)
        shutil.copytree(pristine, working, dirs_exist_ok=True, symlinks=True)
        self.store = working / "artifacts"
        self.files = sorted(path for path in self.store.rglob("*") if path.is_file() and path.parent.name != "locks")
        self.files.append(working / RECORD)
        self.artifacts = sorted(path.parent for path in self.store.glob(f"*/*/{MANIFEST}"))
        self.named = self._named()

    def _named(self) -> list[Path]:
        """Artifacts that another one or the run's record names: their ids are known elsewhere."""
        known = json.dumps([json.loads((path / MANIFEST).read_text("utf-8"))["content"]["parents"] for path in self.artifacts])
        known += (self.run / RECORD).read_text("utf-8")
        return [path for path in self.artifacts if json.loads((path / MANIFEST).read_text("utf-8"))["id"] in known]

    def any_file(self) -> Path:
        return self.random.choice(self.files)

    def change(self, change: Change) -> tuple[str, list[Path]]:
        """Make a change. Returns what was done and where."""
        while True:
            done = change(self)
            if done is not None:
                return done

    def undo(self, places: list[Path]) -> None:
        """Put places back as they are in the pristine run."""
        for place in places:
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
        for place in places:
            before = self.pristine / place.relative_to(self.run)
            if before.is_dir():
                shutil.copytree(before, place, dirs_exist_ok=True)
            elif before.exists():
                shutil.copyfile(before, place)

    def short(self, path: Path) -> str:
        return str(path.relative_to(self.run))


def flip_bit(t: Tamperer) -> tuple[str, list[Path]]:
    path = t.any_file()
    data = bytearray(path.read_bytes())
    place, bit = t.random.randrange(len(data)), t.random.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {place} of {t.short(path)}", [path]


def delete(t: Tamperer) -> tuple[str, list[Path]]:
    path = t.any_file()
    path.unlink()
    return f"deleted {t.short(path)}", [path]


def truncate(t: Tamperer) -> tuple[str, list[Path]]:
    path = t.any_file()
    size = path.stat().st_size
    left = t.random.choice([0, size - 1, t.random.randrange(size)])
    os.truncate(path, left)
    return f"{t.short(path)} cut from {size} to {left} bytes", [path]


def lengthen(t: Tamperer) -> tuple[str, list[Path]]:
    path = t.any_file()
    more = t.random.choice([b"\n", b" ", b"\0" * 512, t.random.randbytes(100)])
    with path.open("ab") as file:
        file.write(more)
    return f"{len(more)} bytes appended to {t.short(path)}", [path]


def rename(t: Tamperer) -> tuple[str, list[Path]]:
    path = t.any_file()
    other = path.with_name(t.random.choice([path.name + ".bak", "." + path.name, path.name.upper(), "x" + path.name]))
    path.rename(other)
    return f"renamed {t.short(path)} to {other.name}", [path, other]


def swap(t: Tamperer) -> tuple[str, list[Path]] | None:
    """Two files change places; half of the time two of one name, as the manifests of two artifacts."""
    one = t.any_file()
    alike = [path for path in t.files if path.name == one.name and path != one]
    two = t.random.choice(alike) if alike and t.random.random() < 0.5 else t.any_file()
    if one.read_bytes() == two.read_bytes():
        return None
    first = one.read_bytes()
    shutil.copyfile(two, one)
    two.write_bytes(first)
    return f"swapped {t.short(one)} and {t.short(two)}", [one, two]


def link(t: Tamperer) -> tuple[str, list[Path]]:
    """The same bytes, but elsewhere."""
    path = t.any_file()
    path.unlink()
    path.symlink_to(t.pristine / path.relative_to(t.run))
    return f"{t.short(path)} is a link", [path]


def add(t: Tamperer) -> tuple[str, list[Path]] | None:
    directory = t.random.choice([*t.artifacts, t.store, *(path.parent for path in t.artifacts)])
    name = t.random.choice(["notes.txt", ".hidden", "part-99999.parquet", "model.bin", "manifest.json.bak", "deeper/file"])
    path = directory / name
    if path.exists():
        return None
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(t.random.choice([b"", t.random.randbytes(50), t.any_file().read_bytes()]))
    return f"added {t.short(path)}", [path.parent if "/" in name else path]


def rename_artifact(t: Tamperer) -> tuple[str, list[Path]] | None:
    path = t.random.choice(t.artifacts)
    other = path.with_name(t.random.choice([f"{t.random.getrandbits(64):016x}", path.name + "-old"]))
    if other.exists():
        return None
    path.rename(other)
    return f"renamed {t.short(path)} to {other.name}", [path, other]


def swap_artifacts(t: Tamperer) -> tuple[str, list[Path]] | None:
    one, two = t.random.sample(t.artifacts, 2)
    if one.parent != two.parent:
        return None
    spare = one.with_name("spare")
    one.rename(spare)
    two.rename(one)
    spare.rename(two)
    return f"{t.short(one)} and {t.short(two)} changed places", [one, two]


def delete_artifact(t: Tamperer) -> tuple[str, list[Path]]:
    path = t.random.choice(t.named)
    shutil.rmtree(path)
    return f"deleted {t.short(path)}", [path]


def copy_artifact(t: Tamperer) -> tuple[str, list[Path]]:
    path = t.random.choice(t.artifacts)
    other = path.with_name(f"{t.random.getrandbits(64):016x}")
    shutil.copytree(path, other)
    return f"a copy of {t.short(path)} as {other.name}", [other]


def edit_summary(t: Tamperer) -> tuple[str, list[Path]] | None:
    """A figure is changed and every hash of the artifact made anew: what was made from it names an id that is gone."""
    path = t.random.choice(t.named)
    content = _content(path)
    numbers = [name for name, value in content["summary"].items() if isinstance(value, int | float)]
    if not numbers:
        return None
    name = t.random.choice(numbers)
    content["summary"][name] += 1
    _write(path, content)
    return f"summary.{name} of {t.short(path)} edited, hashes made anew", [path / MANIFEST]


def edit_file(t: Tamperer) -> tuple[str, list[Path]] | None:
    """A data file is changed, and its entry and every hash of the artifact made anew."""
    path = t.random.choice(t.named)
    content = _content(path)
    entry = t.random.choice(content["files"])
    file = path / entry["path"]
    data = bytearray(file.read_bytes())
    data[t.random.randrange(len(data))] ^= 1 << t.random.randrange(8)
    file.write_bytes(data)
    entry["sha256"] = sha256_of(file)
    _write(path, content)
    return f"{t.short(file)} changed, hashes made anew", [file, path / MANIFEST]


def edit_recipe(t: Tamperer) -> tuple[str, list[Path]] | None:
    """A setting is changed, key, id and directory with it."""
    path = t.random.choice(t.named)
    content = _content(path)
    numbers = [name for name, value in content["recipe"].items() if isinstance(value, int | float)]
    if not numbers:
        return None
    name = t.random.choice(numbers)
    content["recipe"][name] = content["recipe"][name] + 1
    _write(path, content)
    other = path.with_name(_content(path)["key"][:16])
    path.rename(other)
    return f"recipe.{name} of {t.short(path)} edited, key and hashes made anew", [path, other]


def edit_parent(t: Tamperer) -> tuple[str, list[Path]] | None:
    """An artifact claims another parent, key, id and directory with it."""
    path = t.random.choice(t.named)
    content = _content(path)
    if not content["parents"]:
        return None
    t.random.choice(content["parents"])["id"] = f"{t.random.getrandbits(256):064x}"
    _write(path, content)
    other = path.with_name(_content(path)["key"][:16])
    path.rename(other)
    return f"a parent of {t.short(path)} edited, key and hashes made anew", [path, other]


def edit_record(t: Tamperer) -> tuple[str, list[Path]]:
    """A setting of the run's record that decides results is changed, and its seal made anew."""
    path = t.run / RECORD
    record = json.loads(path.read_text("utf-8"))
    settings = {
        "seed": lambda config: config.update(seed=config["seed"] + 1),
        "iterations": lambda config: config.update(iterations=config["iterations"] + 1),
        "train.learning_rate": lambda config: config["train"].update(learning_rate=config["train"]["learning_rate"] * 2),
        "train.epochs": lambda config: config["train"].update(epochs=config["train"]["epochs"] + 1),
        "generate.temperature": lambda config: config["generate"].update(temperature=0.5),
        "evaluate.samples": lambda config: config["evaluate"].update(samples=config["evaluate"]["samples"] + 1),
        "reward weight": lambda config: config["reward"]["components"][0].update(weight=3.0),
        "data.template": lambda config: config["data"].update(template="Other: {question}"),
    }
    name = t.random.choice(list(settings))
    settings[name](record["config"])
    record["seal"] = "0" * 64
    path.write_text(sealed(json.dumps(record, indent=2) + "\n"), encoding="utf-8")
    return f"{name} of the record edited, seal made anew", [path]


def _content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / MANIFEST).read_text("utf-8"))["content"]
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    """Put content into an artifact's manifest, with key, id and seal made anew."""
    value = json.loads((path / MANIFEST).read_text("utf-8"))
    parts = {name: content[name] for name in ("kind", "stage", "recipe", "parents")}
    content["key"] = digest(parts)
    value |= {"content": content, "id": digest(content), "seal": "0" * 64}
    text = Manifest.model_validate(value).model_dump_json(indent=2) + "\n"
    (path / MANIFEST).write_text(sealed(text), encoding="utf-8")


CHANGES: tuple[tuple[Change, int], ...] = (
    *((flip_bit, 10), (delete, 2), (truncate, 2), (lengthen, 2), (rename, 2), (swap, 2), (link, 1), (add, 2)),
    *((rename_artifact, 1), (swap_artifacts, 1), (delete_artifact, 1), (copy_artifact, 1)),
    *((edit_summary, 1), (edit_file, 1), (edit_recipe, 1), (edit_parent, 1), (edit_record, 1)),
)
"""Kinds of changes, and how often each comes."""


def matrix(
    run: Path,
    working: Path,
    changes: int,
    seed: int,
    tell: Callable[[str], None] = lambda line: None,
    before: dict[str, Any] | None = None,
    on_change: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Make changes one by one and audit after each. Change number n is the same whatever was done before it.

    Args:
        before: what an earlier call returned or told of, to go on from.
        on_change: told what there is after every change.

    Returns:
        How many changes of each kind were made and found, those that were not, and what was reported on the untouched run.
    """
    t = Tamperer(run, working, seed)
    kinds, weights = zip(*CHANGES, strict=True)
    result = before or {"changes": 0, "found": 0, "by_kind": {}, "missed": []}
    result["untouched"] = [_findings(audit(working))]
    for number in range(result["changes"], changes):
        t.random = Random(f"{seed} {number}")
        kind = kinds[number] if number < len(kinds) else t.random.choices(kinds, weights)[0]
        what, places = t.change(kind)
        count = result["by_kind"].setdefault(kind.__name__, {"made": 0, "found": 0})
        found = audit(working).status != 0
        if not found:
            result["missed"].append(f"change {number}: {what}")
            tell(f"NOT FOUND: change {number}: {what}")
        t.undo(places)
        result["changes"] += 1
        count["made"] += 1
        result["found"] += found
        count["found"] += found
        on_change(result)
        if (number + 1) % 100 == 0:
            tell(f"{number + 1} changes, {result['found']} found")
    result["untouched"].append(_findings(audit(working)))
    return result


def _findings(result: Any) -> list[str]:
    return [f"{finding.severity} {finding.where}: {finding.check}" for finding in result.findings if finding.severity != "note"]


def make_run(directory: Path) -> Path:
    """A small run of the demo, compared with a method that needs pairs and scores: every kind of artifact."""
    options = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    run = directory / "run"
    subprocess.run([ROLLBOOK, "run", "configs/demo.yaml", *options, "--set", f"run_dir={run}"], check=True)
    subprocess.run([ROLLBOOK, "compare", str(run), "-a", "dpo", "--no-baseline"], check=True)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path, help="a finished run; it is not touched")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tamper.json"))
    args = parser.parse_args()
    before = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    if before.get("seed") != args.seed or before.get("changes", 0) >= args.changes:
        before = {}
    earlier = before.get("seconds", 0.0)
    with tempfile.TemporaryDirectory(prefix="rollbook-tamper-") as place:
        run = args.run or make_run(Path(place))
        started = time.monotonic()
        kinds = Counter(path.parent.parent.name for path in (run / "artifacts").glob(f"*/*/{MANIFEST}"))

        def keep(result: dict[str, Any]) -> None:
            """Write down what there is, so that a run that is stopped goes on from there."""
            record = {
                "date": datetime.now(UTC).date().isoformat(),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "command": f"python benchmarks/tamper.py --changes {args.changes} --seed {args.seed}",
                "seed": args.seed,
                "artifacts": dict(sorted(kinds.items())),
                "seconds": round(earlier + time.monotonic() - started, 1),
                **{name: result[name] for name in RESULT},
            }
            write_text(args.out, json.dumps(record, indent=2) + "\n")

        going_on = {name: before[name] for name in RESULT} if before else None
        tell = partial(print, flush=True)
        result = matrix(run, Path(place) / "working", args.changes, args.seed, tell, going_on, keep)
        keep(result)
        seconds = earlier + time.monotonic() - started
    reported = sum(map(len, result["untouched"]))
    print(f"{result['found']} of {result['changes']} changes found, {reported} findings on the untouched run, {seconds:.0f} s")
    sys.exit(bool(result["missed"] or reported))


if __name__ == "__main__":
    main()
