"""What an auditor pastes: where a finding is, and the commands that mend it, whole."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.look.audit.findings import Finding
from pipeline.look.audit.holdings import Held
from pipeline.look.audit.scope import Scope
from pipeline.run.order import STAGES
from pipeline.run.record import RECORD
from pipeline.store.layout import ASIDE, MANIFEST, SCRATCH

IDENTITY = ("manifest", "id", "seal", "key", "path")
"""Checks of a manifest itself: after such a finding nothing that it says is believed."""
OF_FILES = ("missing", "regular", "bytes", "sha256")
"""Checks of a file against its manifest."""


def with_commands(findings: Iterable[Finding], scope: Scope, held: Iterable[Held]) -> tuple[Finding, ...]:
    """The findings with the places that they are of, and commands that mend them where there are such.

    Args:
        held: what was audited.
    """
    known = {one.name: one for one in held}
    remedies = _Remedies(scope, known)
    return tuple(
        dataclasses.replace(finding, path=remedies.place(finding), commands=tuple(remedies.commands(finding)))
        for finding in findings
    )


def in_order(findings: Iterable[Finding]) -> list[str]:
    """Every command that mends something, once: what moves and mends artifacts, and then the run, which refuses damaged ones.

    None where one finding has all of them.
    """
    mending = [finding.commands for finding in findings if finding.severity in ("error", "warning") and finding.commands]
    commands = list(dict.fromkeys(command for one in mending for command in one))
    return sorted(commands, key=lambda command: command.startswith("rollbook run ")) if len(mending) > 1 else []


class _Remedies:
    def __init__(self, scope: Scope, known: dict[str, Held]) -> None:
        self._scope, self._known = scope, known

    def place(self, finding: Finding) -> str | None:
        """The file or directory that a finding is of; None where it is of none in particular."""
        folder = self._folder(finding)
        if folder is None:
            return None
        return f"{folder}/{finding.file}" if finding.file else folder

    def _folder(self, finding: Finding) -> str | None:
        if finding.artifact is None:
            if finding.file == RECORD or not self._stores():
                return str(self._scope.directory) if self._scope.directory else self._scope.path
            return self._stores()[0]
        held = self._known.get(finding.artifact)
        if held is not None:
            return held.folder.place.url
        if self._scope.artifact is not None:
            return self._scope.artifact.place.url
        return next((f"{store}/{finding.artifact}" for store in self._stores()), None)

    def _stores(self) -> list[str]:
        return [root.url for root in (*self._scope.whole, *self._scope.shared)]

    def commands(self, finding: Finding) -> Iterator[str]:
        held, folder = self._known.get(finding.artifact or ""), self._folder(finding)
        if finding.check == "set aside" or (finding.file or "").partition("/")[0] == SCRATCH:
            yield shlex.join(["rollbook", "gc", self._scope.path, "--delete"])
        if finding.severity not in ("error", "warning") or folder is None or folder.startswith("s3:"):
            return
        if finding.artifact is None:
            yield from self._of_the_run(finding)
        elif finding.check == "unlisted":
            yield from _put_aside(f"{folder}/{finding.file}", folder)
        elif finding.check == "unfinished":
            yield from self._again()
        elif held is None or (finding.file == MANIFEST and finding.check in IDENTITY):
            yield from _put_aside(folder, folder)
            yield from self._again()
        elif held.manifest.content.stage.partition("/")[0] in STAGES:
            yield from self._anew(finding, held)
        elif finding.check in OF_FILES or finding.area in ("schema", "derivation"):
            command = held.manifest.provenance.started_by
            if command[:1] == ("rollbook",):
                yield from _put_aside(folder, folder)
                yield shlex.join(command)

    def _of_the_run(self, finding: Finding) -> Iterator[str]:
        place = self.place(finding)
        if finding.check == "unlisted" and place:
            yield from _put_aside(place, place, up=1)
        elif finding.file == RECORD:
            yield from self._again()

    def _anew(self, finding: Finding, held: Held) -> Iterator[str]:
        """Have the run make it once more: its damaged files, or all of them where they are what the manifest says."""
        of_files = finding.check in OF_FILES
        if not of_files and finding.area not in ("schema", "derivation"):
            return
        run = self._run_of(held)
        if run is None:
            return
        named = [] if Path(run) in Path(held.folder.place.url).absolute().parents else ["--run", run]
        everything = [] if of_files else ["--all"]
        yield shlex.join(["rollbook", "repair", held.folder.place.url, "--regenerate", *everything, *named])
        if not of_files:
            yield from self._again()

    def _run_of(self, held: Held) -> str | None:
        """The directory of the run that made it, if it is known."""
        if self._scope.directory is not None:
            return str(self._scope.directory.absolute())
        return next((str(up) for up in Path(held.folder.place.url).absolute().parents if (up / RECORD).exists()), None)

    def _again(self) -> Iterator[str]:
        """The command of the run, which makes what is not there: that of its newest artifact."""
        made = [one for one in self._known.values() if (one.manifest.provenance.started_by or ("",))[0] == "rollbook"]
        runs = [one for one in made if one.manifest.provenance.started_by[1:2] == ("run",)]
        if runs:
            newest = max(runs, key=lambda one: one.manifest.provenance.created)
            yield shlex.join(_here(newest.manifest.provenance.started_by, self._scope.directory))


def _here(command: Sequence[str], directory: Path | None) -> list[str]:
    """The command of a run, for this directory of it, which may be a copy.

    >>> _here(["rollbook", "run", "a.yaml", "--set", "run_dir=b", "--set", "seed=1"], Path("c"))
    ['rollbook', 'run', 'a.yaml', '--set', 'seed=1', '--set', 'run_dir=c']
    """
    if directory is None:
        return list(command)
    pairs = list(zip(command, (*command[1:], ""), strict=True))
    said = {number for number, (option, value) in enumerate(pairs) if option == "--set" and value.startswith("run_dir=")}
    kept = [part for number, part in enumerate(command) if number not in said and number - 1 not in said]
    return [*kept, "--set", f"run_dir={directory}"]


def _put_aside(path: str, folder: str, up: int = 2) -> Iterator[str]:
    """Move something to where a store keeps what was replaced, for `rollbook gc` to delete.

    Args:
        folder: of an artifact.
        up: how many directories lie between the store and it.
    """
    store = Path(folder).parents[up - 1]
    name = Path(path).relative_to(store)
    target = store / ASIDE / "by-hand" / name
    yield f"mkdir -p {shlex.quote(str(target.parent))} && mv {shlex.quote(path)} {shlex.quote(str(target))}"
