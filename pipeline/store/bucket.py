"""A bucket of S3-compatible storage: reads, conditional writes, and errors that are answers.

Credentials, region and endpoint come from where every AWS program looks for them: the environment (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, AWS_PROFILE, ...), ~/.aws, or the machine's role. None of them is ever written down or shown.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.common.errors import StageFailed, UserError

ABSENT = "*"
"""A condition for writing: only if there is no such object yet."""
HASH = "sha256"
"""Name of the metadata entry that holds an object's hash."""
CONNECT_SECONDS = 10
READ_SECONDS = 30
ATTEMPTS = 6
"""How often a request is made before storage counts as out of reach: about 30 s of waiting between them."""
BODY_ATTEMPTS = 3
"""How often an answer that broke off is asked for again."""
BLOCK_BYTES = 1 << 20
"""Bytes of an object that are held at once while it is read through."""
PART_BYTES = 64 << 20
"""Files above this size are sent in parts, several at a time, and only the lost parts again."""
PARTS_AT_ONCE = 4
CONNECTIONS = 16


class Changed(Exception):
    """An object is not what the condition of a write said: somebody else wrote it."""


@dataclass(frozen=True)
class Object:
    """What is known of an object without reading it."""

    etag: str
    sha256: str | None
    """As its writer recorded it."""


_clients: dict[tuple[tuple[str, str], ...], Any] = {}
"""Clients by what the environment said when they were made: making one takes longer than many a request."""
_guard = threading.Lock()


class Bucket:
    """Objects by key. Every method retries what may pass.

    Raises:
        UserError: no credentials, no such bucket, or access is denied.
        StageFailed: the storage cannot be reached or fails again and again.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def _client(self) -> Any:
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise UserError(f"s3://{self.name}: stores in a bucket need boto3: pip install 'rollbook[s3]'") from None
        user = any(name in os.environ for name in ("AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"))
        retries = {} if user else {"retries": {"mode": "standard", "total_max_attempts": ATTEMPTS}}
        settings = Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, max_pool_connections=CONNECTIONS, **retries)
        said = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
        with _guard, self._answers("connect"):
            if said not in _clients:
                _clients[said] = boto3.session.Session().client("s3", config=settings)
            return _clients[said]

    @property
    def endpoint(self) -> str:
        """The server, for telling stores of one name apart."""
        return str(self._client.meta.endpoint_url)

    def read(self, key: str) -> tuple[bytes, str] | None:
        """An object's bytes and etag; None if there is no such object."""
        from botocore.exceptions import BotoCoreError

        with self._answers("read", key):
            for left in reversed(range(BODY_ATTEMPTS)):
                try:
                    found = self._client.get_object(Bucket=self.name, Key=key)
                    return found["Body"].read(), found["ETag"]
                except self._client.exceptions.NoSuchKey:
                    return None
                except BotoCoreError:
                    if not left:
                        raise
        raise AssertionError("unreachable")

    def head(self, key: str) -> Object | None:
        """What is known of an object; None if there is no such object."""
        found = self._head(key)
        return found and Object(found["ETag"], found["Metadata"].get(HASH))

    def _head(self, key: str) -> Any:
        from botocore.exceptions import ClientError

        with self._answers("look at", key):
            try:
                return self._client.head_object(Bucket=self.name, Key=key)
            except ClientError as error:
                if _status(error) == 404:
                    return None
                raise

    def blocks(self, key: str, most: int | None = None) -> Iterator[bytes]:
        """An object's bytes, a piece at a time. What breaks off goes on where it was.

        Args:
            most: how many of its first bytes; None for all.

        Raises:
            FileNotFoundError: there is no such object.
        """
        from botocore.exceptions import BotoCoreError

        done, left = 0, BODY_ATTEMPTS
        same: dict[str, str] = {}
        end = "" if most is None else str(most - 1)
        with self._answers("read", key):
            while True:
                part = {"Range": f"bytes={done}-{end}"} if done or end else {}
                try:
                    found = self._client.get_object(Bucket=self.name, Key=key, **part, **same)
                    same = {"IfMatch": found["ETag"]}
                    for block in found["Body"].iter_chunks(BLOCK_BYTES):
                        done += len(block)
                        yield block
                    return
                except self._client.exceptions.NoSuchKey:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"s3://{self.name}/{key}") from None
                except BotoCoreError:
                    left -= 1
                    if not left:
                        raise

    def seconds_since(self, key: str) -> float | None:
        """How long ago an object was written, by the server's clock; None if there is no such object."""
        if (found := self._head(key)) is None:
            return None
        now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
        return float((now - found["LastModified"]).total_seconds())

    def copy(self, key: str, to: str) -> None:
        """Write an object's bytes as another object, at the server."""
        with self._answers("copy", key):
            self._client.copy({"Bucket": self.name, "Key": key}, self.name, to)

    def download(self, key: str, path: Path) -> bool:
        """Write an object's bytes to a file. False if there is no such object."""
        from botocore.exceptions import ClientError

        with self._answers("read", key):
            try:
                self._client.download_file(self.name, key, str(path))
            except ClientError as error:
                if _status(error) == 404:
                    return False
                raise
        return True

    def write(self, key: str, body: bytes, only_if: str) -> str:
        """Write a small object. Returns its etag.

        Args:
            only_if: `ABSENT`, or the etag that the object has now.

        Raises:
            Changed: the condition does not hold.
        """
        with self._answers("write", key):
            written = self._client.put_object(Bucket=self.name, Key=key, Body=body, **_condition(only_if))
        return str(written["ETag"])

    def upload(self, key: str, path: Path, sha256: str, only_if: str) -> str:
        """Write a file as an object; see `write`. `sha256` is recorded with it."""
        if path.stat().st_size > PART_BYTES:
            return self._upload_parts(key, path, sha256, only_if)
        with self._answers("write", key), path.open("rb") as file:
            written = self._client.put_object(
                Bucket=self.name, Key=key, Body=file, Metadata={HASH: sha256}, **_condition(only_if)
            )
        return str(written["ETag"])

    def _upload_parts(self, key: str, path: Path, sha256: str, only_if: str) -> str:
        size = path.stat().st_size
        part_bytes = max(PART_BYTES, size // 9_000 + 1)  # there can be 10,000 parts
        target = {"Bucket": self.name, "Key": key}
        with self._answers("write", key):
            upload = {**target, "UploadId": self._client.create_multipart_upload(**target, Metadata={HASH: sha256})["UploadId"]}
            try:

                def send(number: int) -> dict[str, Any]:
                    with path.open("rb") as file:
                        file.seek((number - 1) * part_bytes)
                        sent = self._client.upload_part(**upload, PartNumber=number, Body=file.read(part_bytes))
                    return {"PartNumber": number, "ETag": sent["ETag"]}

                with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
                    parts = list(pool.map(send, range(1, -(-size // part_bytes) + 1)))
                done = self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **_condition(only_if))
            except BaseException:
                self._abandon(upload)
                raise
        return str(done["ETag"])

    def _abandon(self, upload: dict[str, Any]) -> None:
        """Free the parts of an upload that failed, if that can be done now."""
        from botocore.exceptions import BotoCoreError, ClientError

        with suppress(BotoCoreError, ClientError):
            self._client.abort_multipart_upload(**upload)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of every object whose key begins with `prefix`, in the order of the keys."""
        with self._answers("list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
            return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", ())}

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin with `prefix`, in order."""
        return list(self.sizes(prefix))

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly in `prefix` (which ends with a slash, or is empty), in order."""
        with self._answers("list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix, Delimiter="/")
            found = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        return sorted(name.removeprefix(prefix).rstrip("/") for name in found)

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            with self._answers("delete", key):
                self._client.delete_object(Bucket=self.name, Key=key)

    @contextmanager
    def _answers(self, action: str, key: str = "") -> Iterator[None]:
        """Turn what the storage refuses into an answer that names the object, and no secret."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError, ProfileNotFound

        place = f"s3://{self.name}/{key}"
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError):
            raise UserError(
                f"{place}: no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile of ~/.aws in "
                "AWS_PROFILE"
            ) from None
        except ProfileNotFound:
            raise UserError(f"{place}: there is no profile {os.environ.get('AWS_PROFILE')!r} in ~/.aws") from None
        except ClientError as error:
            raise _translated(error, place, action) from None
        except (BotoCoreError, Boto3Error, ConnectionError, TimeoutError) as error:
            raise StageFailed(
                f"{place}: cannot {action}: the storage is out of reach ({type(error).__name__}). {_GO_ON}"
            ) from None


def _condition(only_if: str) -> dict[str, str]:
    return {"IfNoneMatch": "*"} if only_if == ABSENT else {"IfMatch": only_if}


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _translated(error: Any, place: str, action: str) -> Exception:
    status, code = _status(error), str(error.response.get("Error", {}).get("Code", "unknown"))
    if status in (409, 412) or (status == 404 and code == "NoSuchKey"):
        return Changed(place)
    if code == "NoSuchBucket":
        return UserError(f"{place}: there is no such bucket. Make it, or mend `store`; AWS_ENDPOINT_URL names the server")
    if status in (400, 401, 403):
        return UserError(
            f"{place}: cannot {action}: refused with {code}. See that the credentials are right and may list, read, write and "
            "delete there"
        )
    return StageFailed(f"{place}: cannot {action}: the storage answers {status} {code}. {_GO_ON}")


_GO_ON = "What is finished is kept on this machine; run the same command again once the storage answers."
