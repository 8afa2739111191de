"""`rollbook gc`: which store, and who uses it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import typer

from pipeline.common.errors import UserError
from pipeline.common.text import visible
from pipeline.look.show.subject import artifacts_in, store_around, uses_of
from pipeline.look.upkeep.bucket_inventory import BucketInventory
from pipeline.look.upkeep.garbage import ABOUT, Garbage, Users, delete, find_garbage
from pipeline.look.upkeep.inventory import Inventory, Item, LocalInventory
from pipeline.run.record import RECORD, load_run
from pipeline.store import Store
from pipeline.store.cache import store_of
from pipeline.store.mirror import BucketBackend
from pipeline.store.space import readable

MOST = 12
"""Paths of one sort that are listed."""


def collect(path: str, really: bool, run_directories: Sequence[Path], no_other_runs: bool, abandon: bool, as_json: bool) -> None:
    """Print what can be deleted; delete it if told to.

    Raises:
        UserError: no store there, or somebody works in it.
    """
    inventory, directories = _store_and_runs(path, run_directories)
    if no_other_runs and not directories:
        raise UserError(f"--no-other-runs: name the runs that use {path} with --run; without one, every artifact would go")
    runs = [load_run(directory) for directory in directories]
    unfinished = [name for directory in directories for name in _unfinished_comparisons(directory, inventory.url)]
    found = find_garbage(inventory, Users(runs, unfinished, all_known=no_other_runs, abandon=abandon))
    gone = list(delete(inventory, found.items)) if really else []
    if as_json:
        typer.echo(json.dumps(_as_json(inventory.url, found, gone), indent=2))
    else:
        _print(found, gone, really)


def _store_and_runs(path: str, more: Sequence[Path]) -> tuple[Inventory, list[Path]]:
    """The store, and the directories of runs that use it."""
    here = Path(path)
    if path.startswith("s3:") or store_of(here) is not None:
        return _inventory(Store(path)), list(more)
    if (here / RECORD).exists():
        run = load_run(here)
        stores = {store.url: store for use in uses_of(run) if (store := store_around(use.artifact))}
        if len(stores) > 1:
            raise UserError(f"{path}: its artifacts lie in several stores; name one of {', '.join(sorted(stores))}")
        store = next(iter(stores.values()), Store((here / "artifacts").absolute()))
        return _inventory(store), [here, *more]
    inventory = LocalInventory(here.absolute())
    if not inventory.folders():
        raise UserError(f"{path}: neither a run (with {RECORD}) nor a store")
    around = [here.absolute().parent] if (here.absolute().parent / RECORD).exists() else []
    return inventory, [*around, *more]


def _inventory(store: Store) -> Inventory:
    if not isinstance(store.backend, BucketBackend):
        return LocalInventory(store.root)
    inventory = BucketInventory(store.backend)
    if not inventory.folders():
        raise UserError(f"{store.url}: no store there")
    return inventory


def _unfinished_comparisons(directory: Path, url: str) -> list[str]:
    """Snapshots that a comparison was begun on and never recorded."""
    begun = {place.name for place in (directory / "comparisons").glob("*") if place.is_dir()}
    if not begun:
        return []
    store = Store(url)
    compared = {parent.id for found in artifacts_in(store, "comparison") for parent in found.manifest.content.parents}
    done = {rollouts.path.name for rollouts in artifacts_in(store, "rollouts") if rollouts.id in compared}
    return [f"the comparison on rollouts/{name}" for name in sorted(begun - done)]


def _print(found: Garbage, gone: list[Item], really: bool) -> None:
    by_reason: dict[str, list[Item]] = defaultdict(list)
    for item in gone if really else found.items:
        by_reason[item.reason].append(item)
    for reason, about in ABOUT.items():
        if items := by_reason[reason]:
            typer.echo(f"{reason}: {len(items)}, {readable(sum(item.bytes for item in items))}  ({about})")
            listed = items[:MOST] if reason != "lock" else []
            for item in listed:
                typer.echo(visible(f"  {readable(item.bytes):>9}  {item.name}"))
            if len(items) > MOST and listed:
                typer.echo(f"  and {len(items) - MOST} more (--json lists all)")
    for kept in found.kept:
        typer.echo(visible(f"left alone: {kept}"))
    for held in found.held:
        typer.echo(visible(f"held now: {held}; nothing is deleted while it is"))
    total = readable(sum(item.bytes for item in (gone if really else found.items)))
    count = len(gone if really else found.items)
    typer.echo(
        f"deleted {count}, {total}"
        if really
        else f"{count} can be deleted, {total}; --delete does it"
        if count
        else "nothing to delete"
    )


def _as_json(url: str, found: Garbage, gone: list[Item]) -> dict[str, object]:
    def entries(items: Sequence[Item]) -> list[dict[str, object]]:
        return [{"path": f"{url}/{item.name}", "reason": item.reason, "bytes": item.bytes} for item in items]

    return {
        "store": url,
        "deletable": entries(found.items),
        "deleted": entries(gone),
        "left_alone": list(found.kept),
        "held": list(found.held),
    }
