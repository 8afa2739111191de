"""Where artifacts lie. A backend holds them, a place is the directory of one: on this machine, or in a bucket.

Stages work on local files either way. What a bucket adds is behind these two protocols: files are fetched before they are
read and published once they are written. In both, an artifact exists exactly when its manifest does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pipeline.store.removed import Removal
from schemas.manifest import File

REMEDY = "Restore it from a copy, or have it made anew: `rollbook audit` on its run prints the command."
Notify = Callable[[str], None]
"""Called with a sentence that the user should see."""


class Place(Protocol):
    """The directory of one artifact."""

    @property
    def path(self) -> Path:
        """On this machine."""

    @property
    def url(self) -> str:
        """What it is called by people and in records."""

    def manifest(self) -> str | None:
        """Text of the manifest; None if the artifact is not finished."""

    def have(self, file: File) -> Path:
        """The file on this machine. A local one is not looked at."""

    def verify(self, files: Sequence[File]) -> None:
        """Have files on this machine, and compare their hashes with the manifest: remembered ones of files that have not changed.

        Raises:
            IntegrityError: names the first file that is missing or differs.
        """

    def verify_there(self, files: Sequence[File]) -> None:
        """As `verify`, but every byte is read, of what the store itself has, whatever copies are on this machine."""

    def names(self) -> list[str]:
        """Every file that the store has in this place, the manifest among them.

        What a process is at work on is none of them, nor is what one that was killed left of that.
        """

    def removal(self) -> Removal | None:
        """The note on files that were removed on purpose; None if there is none, or none that can be read."""

    def remove(self, removal: Removal) -> None:
        """Remove files of a finished artifact: the note first. Files that are gone already are passed over."""

    def refuse_others(self, files: Sequence[File]) -> None:
        """Refuse files on this machine that the manifest does not list. Raises IntegrityError."""

    def require_space(self, needed: int, what: str) -> None:
        """Refuse to start what will not fit on the disk. Raises StageFailed."""

    def begin(self, scratch: Path) -> None:
        """Make the directory, and get back what `keep` kept of an attempt on another machine."""

    def recover(self, name: str) -> bool:
        """Whether an earlier attempt finished this file; then it is on this machine."""

    def keep(self, point: Path) -> None:
        """Keep a resume point (a directory in the scratch directory) where another machine can find it, if it is time to."""

    def publish(self, name: str) -> None:
        """Take a finished file. It may come again if it was written again."""

    def commit(self, names: Sequence[str], manifest: str, scratch: Path) -> None:
        """Make the artifact exist: every file first, the manifest last. Only then resume state goes."""


class Backend(Protocol):
    """A store's root."""

    @property
    def root(self) -> Path:
        """On this machine."""

    @property
    def url(self) -> str:
        """What it is called by people and in records."""

    def place(self, kind: str, name: str) -> Place:
        """The place of an artifact, finished or not."""

    def finished(self, kind: str | None = None) -> Iterator[tuple[Place, str]]:
        """Places of finished artifacts with their manifests, of one kind or of all."""

    def locked(self, kind: str, name: str) -> AbstractContextManager[Place]:
        """A place to write to, for one process at a time. Waits for the holder, or takes over from one that died."""

    def discard(self, kind: str, name: str) -> None:
        """Delete an artifact, its manifest first. Waits for whoever is at work on it."""

    def describe(self) -> str:
        """A line about the store, once it was seen that it can be used. Raises UserError."""
