"""A store in a bucket, with a directory on this machine in which the work is done and from which it is read.

Every file is whole here (temporary name, fsync, rename) before it is sent, so a killed process loses no more than one of a
local store does; and it is sent as soon as it is whole, so the loss of the machine costs what was not sent yet. Writes are
conditional: a process that was taken for dead and wakes up cannot overwrite what its successor wrote.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath

from pipeline.common.errors import IntegrityError, StageFailed, UserError
from pipeline.store.bucket import ABSENT, Bucket, Changed
from pipeline.store.bucket_files import AT_ONCE, BucketFiles
from pipeline.store.cache import Cache, working
from pipeline.store.files import TEMPORARY, sha256_of, sync, whole_file, write_text
from pipeline.store.layout import LOCKS, MANIFEST, REMOVED
from pipeline.store.lease import Lease, LeaseLost, holder_of
from pipeline.store.place import Notify, Place
from pipeline.store.removed import Removal

KEPT = "kept.json"
"""Object that lists the files of the newest resume point; written after them."""
KEEP_SECONDS = 300.0
"""Seconds between resume points that are sent, at least; and ten times as long as sending one takes."""

_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
"""Names of folders that are also fit for directories here."""


class BucketBackend:
    """Artifacts in a bucket."""

    def __init__(self, url: str, notify: Notify) -> None:
        """
        Raises:
            UserError: not of the form s3://bucket/prefix.
        """
        found = re.fullmatch(r"s3:/{1,2}([a-z0-9][a-z0-9.-]*)(/[^?#]*)?", url)
        if not found:
            raise UserError(
                "store: expected s3://bucket/prefix, with a bucket's name in small letters. Credentials do not belong in it: "
                "they are taken from the environment or ~/.aws"
            )
        self._bucket = Bucket(found[1])
        self._prefix = "".join(f"{part}/" for part in (found[2] or "").split("/") if part)
        self._url = f"s3://{found[1]}/{self._prefix}".rstrip("/")
        self._notify = notify

    @cached_property
    def _cache(self) -> Cache:
        return Cache(self._url, self._bucket.endpoint)

    @property
    def root(self) -> Path:
        return self._cache.root

    @property
    def url(self) -> str:
        return self._url

    def place(self, kind: str, name: str) -> BucketPlace:
        if not self.is_place(kind, name):
            raise UserError(f"{self._url}/{kind}/{name}: not the address of an artifact")
        return BucketPlace(self._bucket, f"{self._prefix}{kind}/{name}/", self._cache, self.root / kind / name, self._notify)

    def is_place(self, kind: str, name: str) -> bool:
        """Whether an artifact can have that address: it is a directory here too."""
        return bool(_SAFE.fullmatch(kind) and _SAFE.fullmatch(name))

    def folders(self) -> list[str]:
        """Names of the folders directly in the store."""
        return self._bucket.folders(self._prefix)

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every object in a folder of the store (which ends with a slash, or is empty), by its path from there."""
        prefix = self._prefix + folder
        return {key.removeprefix(prefix): size for key, size in self._bucket.sizes(prefix).items()}

    def delete(self, folder: str, stay: Collection[str] = ()) -> None:
        """Delete a folder of the store (which ends with a slash): the manifest first, so that there is no artifact any more.

        Args:
            stay: paths in it that are not deleted.
        """
        prefix = self._prefix + folder
        keys = [key for key in self._bucket.keys(prefix) if key.removeprefix(prefix) not in stay]
        self._bucket.delete(sorted(keys, key=lambda key: key != prefix + MANIFEST))

    def discard(self, kind: str, name: str) -> None:
        with self.locked(kind, name) as place:
            self.delete(f"{kind}/{name}/")
            shutil.rmtree(place.path, ignore_errors=True)

    def copy(self, folder: str, to: str) -> None:
        """Copy a folder of the store to another."""
        for path in self.sizes(folder):
            self._bucket.copy(f"{self._prefix}{folder}{path}", f"{self._prefix}{to}{path}")

    def holder(self, kind: str, name: str) -> str | None:
        """Who makes an artifact now; None if nobody is at work on it."""
        return holder_of(self._bucket, f"{self._prefix}{LOCKS}/{kind}-{name}.lock")

    def finished(self, kind: str | None = None) -> Iterator[tuple[Place, str]]:
        kinds = [kind] if kind else [name for name in self.folders() if name != LOCKS]
        names = [(kind, name) for kind in kinds for name in self._bucket.folders(f"{self._prefix}{kind}/")]
        places = [self.place(*both) for both in names if all(map(_SAFE.fullmatch, both))]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for place, text in zip(places, pool.map(BucketPlace.manifest, places), strict=True):
                if text is not None:
                    yield place, text

    @contextmanager
    def locked(self, kind: str, name: str) -> Iterator[Place]:
        file = f"{kind}-{name}.lock"
        lease = Lease(self._bucket, f"{self._prefix}{LOCKS}/{file}", self._cache.machine, self.root / LOCKS / file, self._notify)
        with working(), lease:
            place = self.place(kind, name)
            place.lease = lease
            try:
                yield place
            finally:
                place.stop()

    def describe(self) -> str:
        self._bucket.folders(self._prefix)
        return f"{self._url} (work and copies in {self.root})"


class BucketPlace(BucketFiles):
    """An artifact in a folder of a bucket. `lease` is there while it is written."""

    def __init__(self, bucket: Bucket, prefix: str, cache: Cache, path: Path, notify: Notify) -> None:
        super().__init__(bucket, prefix, cache, path)
        self._notify = notify
        self.lease: Lease | None = None
        self._sent: dict[str, str] = {}
        """Hash of every file that the bucket has as it is here."""
        self._sending: dict[str, Future[None]] = {}
        self._keep_after = time.monotonic() + KEEP_SECONDS

    def require_space(self, needed: int, what: str) -> None:
        self._cache.use(self._path)
        self._cache.make_room(needed, what)

    def begin(self, scratch: Path) -> None:
        if (self._path / MANIFEST).exists():
            shutil.rmtree(self._path)  # a copy of what the bucket has no more
        self._cache.use(self._path)
        self._path.mkdir(parents=True, exist_ok=True)
        self._recover_scratch(scratch)

    @cached_property
    def _earlier(self) -> set[str]:
        """Keys that earlier attempts left."""
        return set(self._bucket.keys(self._prefix))

    def recover(self, name: str) -> bool:
        """The bucket's file is taken, if there is one: the attempt that sent it may have gone on elsewhere since."""
        path, key = self._path / name, self._prefix + name
        there = self._bucket.head(key) if key in self._earlier else None
        if there is None:
            if path.exists():
                self.publish(name)
            return path.exists()
        if not path.exists() or sha256_of(path) != there.sha256:
            with whole_file(path) as temporary:
                self._bucket.download(key, temporary)
                if there.sha256 not in (None, sha256_of(temporary)):
                    raise IntegrityError(
                        f"{self._url_of(name)}: was changed after it was written. Delete the object and run again"
                    )
        self._sent[name] = there.sha256 or ""
        return True

    def publish(self, name: str) -> None:
        """Send a file beside the work. If that fails, it is sent again when the artifact is finished."""
        earlier = self._sending.get(name)

        def send() -> None:
            if earlier is not None:
                wait([earlier])
            try:
                self._send(name)
            except LeaseLost:
                raise
            except StageFailed as error:
                self._notify(f"{error} The work goes on; it is sent when all is done.")

        self._sending[name] = _pool().submit(send)

    def _send(self, name: str) -> None:
        digest = sha256_of(self._path / name)
        if self._sent.get(name) == digest:
            return
        condition = ABSENT
        while True:
            try:
                self._bucket.upload(self._prefix + name, self._path / name, digest, condition)
                break
            except Changed:
                there = self._bucket.head(self._prefix + name)
                if there is not None and there.sha256 == digest:
                    break
                self._confirm()  # what is there is of an earlier attempt, unless we were taken for dead
                condition = there.etag if there else ABSENT
        self._sent[name] = digest

    def _confirm(self) -> None:
        assert self.lease is not None
        self.lease.confirm()

    def commit(self, names: Sequence[str], manifest: str, scratch: Path) -> None:
        for sending in self._sending.values():
            sending.result()
        list(_pool().map(self._send, names))
        self._confirm()
        try:
            self._bucket.write(self._prefix + MANIFEST, manifest.encode(), ABSENT)
            self._forget(self._prefix, {self._prefix + name for name in (*names, MANIFEST)})
        except Changed:  # our answer was lost, or another process finished it
            if self.manifest() is None:
                raise StageFailed(f"{self._url_of(MANIFEST)}: another process wrote there. Run the same command again") from None
        shutil.rmtree(scratch, ignore_errors=True)
        write_text(self._path / MANIFEST, self._manifest or manifest)

    def remove(self, removal: Removal) -> None:
        key = self._prefix + REMOVED
        there = self._bucket.head(key)
        self._bucket.write(key, removal.text.encode(), there.etag if there else ABSENT)
        self._bucket.delete([self._prefix + name for name in removal.files])
        for name in removal.files:
            (self._path / name).unlink(missing_ok=True)

    def stop(self) -> None:
        """Drop what was not sent when the work ended with an error; it is here."""
        for sending in self._sending.values():
            sending.cancel()

    # Resume points

    def keep(self, point: Path) -> None:
        began = time.monotonic()
        if began < self._keep_after:
            return
        try:
            self._confirm()
            self._keep(point)
        except LeaseLost:
            raise
        except (StageFailed, Changed) as error:
            self._notify(f"{error}: the resume point is on this machine only; the work goes on")
        now = time.monotonic()
        self._keep_after = now + max(KEEP_SECONDS, 10 * (now - began))

    def _keep(self, point: Path) -> None:
        files = {path.relative_to(self._path).as_posix(): sha256_of(path) for path in sorted(point.iterdir())}
        for name, digest in files.items():
            there = self._bucket.head(self._prefix + name)
            if there is None or there.sha256 != digest:
                self._bucket.upload(self._prefix + name, self._path / name, digest, there.etag if there else ABSENT)
        folder = self._prefix + point.parent.relative_to(self._path).as_posix() + "/"
        before = self._bucket.read(folder + KEPT)
        self._bucket.write(folder + KEPT, json.dumps(files).encode(), before[1] if before else ABSENT)
        self._forget(folder, {folder + KEPT, *(self._prefix + name for name in files)})

    def _recover_scratch(self, scratch: Path) -> None:
        folder = scratch.relative_to(self._path).as_posix()
        record = self._bucket.read(f"{self._prefix}{folder}/{KEPT}")
        if record is None:
            return
        files: dict[str, str] = json.loads(record[0])
        points = {PurePosixPath(name).parent for name in files}
        if len(points) != 1 or ".." in (point := points.pop()).parts or point.parent.as_posix() != folder:
            raise IntegrityError(f"{self._url_of(folder)}/{KEPT}: lists files elsewhere. Delete the object and run again")
        if (self._path / point).exists():
            return
        building = scratch / (TEMPORARY + point.name)
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        for name, digest in files.items():
            file = building / PurePosixPath(name).name
            if not self._bucket.download(self._prefix + name, file) or sha256_of(file) != digest:
                self._notify(f"{self._url_of(name)}: the resume point is not whole; going on without it")
                shutil.rmtree(building)
                return
            sync(file)
        building.rename(self._path / point)

    def _forget(self, prefix: str, wanted: set[str]) -> None:
        """Delete what lies there and is not wanted: leftovers of earlier attempts."""
        self._bucket.delete([key for key in self._bucket.keys(prefix) if key not in wanted])


_pools: list[ThreadPoolExecutor] = []
_guard = threading.Lock()


def _pool() -> ThreadPoolExecutor:
    """Threads that send files beside the work."""
    with _guard:
        if not _pools:
            _pools.append(ThreadPoolExecutor(AT_ONCE, thread_name_prefix="send"))
        return _pools[0]
