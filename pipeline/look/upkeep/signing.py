"""Signatures in the format of OpenSSF Model Signing: a Sigstore bundle around an in-toto statement that lists every file.

A signature covers each file of an artifact, its manifest among them, and so (by the ids of the parents) everything it was
made from. It lies beside the artifact's directory, as <key>.sig; artifacts are not changed by it. Keys are elliptic curve
keys in PEM files, as `openssl ecparam -name prime256v1 -genkey` makes them. Nothing asks for a network.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pipeline.common.errors import IntegrityError, UserError
from pipeline.common.near import did_you_mean
from pipeline.look.show.subject import Subject
from pipeline.run.record import RECORD
from pipeline.store import Artifact
from pipeline.store.files import TEMPORARY, whole_file
from pipeline.store.layout import MANIFEST, SIGNATURE

PASSWORD = "ROLLBOOK_KEY_PASSWORD"
"""Variable: the password of an encrypted private key."""


@dataclass(frozen=True)
class Target:
    """What is signed: an artifact's directory, or a run's record."""

    name: str
    path: Path
    signature: Path
    artifact: Artifact | None


@dataclass(frozen=True)
class Verdict:
    """What was found of one target."""

    name: str
    state: Literal["signed", "unsigned", "wrong"]
    why: str = ""


def targets(place: Subject, signatures: Path | None) -> list[Target]:
    """Every artifact of a place, and of a run its record too.

    Args:
        signatures: a directory to keep signatures in; None for beside what is signed.

    Raises:
        UserError: the artifacts lie in a bucket, and no directory is named.
    """
    found = []
    for artifact in {use.artifact.url: use.artifact for use in place.uses}.values():
        where = artifact.path if artifact.path.name not in ("", "..") else artifact.path.absolute()
        if signatures is None and artifact.url.startswith("s3:"):
            raise UserError(f"{artifact.url}: lies in a bucket. Name a directory for signatures: --signatures DIR")
        name = f"{artifact.kind}-{where.name}{SIGNATURE}"
        signature = signatures / name if signatures else where.with_name(where.name + SIGNATURE)
        found.append(Target(f"{artifact.kind}/{where.name}", artifact.path, signature, artifact))
    if place.run is not None:
        record = Path(place.url) / RECORD
        found.append(Target(RECORD, record, (signatures or record.parent) / (RECORD + SIGNATURE), None))
    return found


def sign(wanted: Iterable[Target], key: Path) -> Iterator[Target]:
    """Sign every target, artifacts after comparing each with its manifest.

    Raises:
        UserError: the key cannot be used, or the library is missing.
        IntegrityError: an artifact is damaged; what is damaged is not signed.
    """
    signer = _configured("signing", lambda config: config.use_elliptic_key_signer(private_key=key, password=_password()), key)
    for target in wanted:
        with _verified(target) as path, whole_file(target.signature) as temporary:
            signer.sign(path, temporary)
        yield target


def verify(wanted: Iterable[Target], key: Path) -> Iterator[Verdict]:
    """Compare every target with its signature.

    Raises:
        UserError: the key cannot be used, or the library is missing.
    """
    verifier = _configured("verifying", lambda config: config.use_elliptic_key_verifier(public_key=key), key)
    for target in wanted:
        if not target.signature.is_file():
            yield Verdict(target.name, "unsigned", f"no {target.signature.name}")
            continue
        try:
            with _verified(target) as path, redirect_stdout(StringIO()):  # the library prints warnings there
                verifier.verify(path, target.signature)
        except Exception as error:  # whatever a stranger's signature makes the library stumble over
            yield Verdict(target.name, "wrong", _reason(error, target.path.name))
        else:
            yield Verdict(target.name, "signed")


@contextmanager
def _verified(target: Target) -> Iterator[Path]:
    """The directory or the file that a signature is of, once it was compared with its manifest.

    Of an artifact in a bucket it is a directory of links to copies that were fetched now: nothing else is in it.
    """
    artifact = target.artifact
    if artifact is None:
        yield target.path
    elif not artifact.url.startswith("s3:"):
        artifact.verify()
        artifact.place.verify_there(artifact.files)
        yield target.path
    else:
        artifact.place.verify_there(artifact.files)
        names = {MANIFEST, *(file.path for file in artifact.files)}
        if others := sorted(set(artifact.place.names()) - names):
            raise IntegrityError(f"{artifact.url}/{others[0]}: not in the manifest. Delete the object")
        with TemporaryDirectory(prefix=TEMPORARY, dir=target.path.parents[2]) as place:
            directory = Path(place, target.path.name)
            for name in names:
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(target.path / name, directory / name)
            yield directory


def _configured(module: Literal["signing", "verifying"], use: Callable[[Any], Any], key: Path) -> Any:
    """The library's configuration, with a key and every file of a directory."""
    if not key.is_file():
        raise UserError(f"--key {key}: no such file{did_you_mean(key)}")
    try:
        import model_signing
    except ImportError:
        raise UserError("signatures need the library model-signing: pip install 'rollbook[signing]'") from None
    config = getattr(model_signing, module).Config()
    hashing_of: Any = model_signing.hashing
    hashing = hashing_of.Config().set_ignored_paths(paths=(), ignore_git_paths=False)
    try:
        return use(config.set_hashing_config(hashing))
    except (ValueError, TypeError, AttributeError) as error:
        private = "PRIVATE" in key.read_text(encoding="latin-1")
        if module == "verifying" and private:
            raise UserError(f"--key {key}: a private key; verify with the public one (openssl ec -in KEY -pubout)") from None
        if module == "signing" and not private:
            raise UserError(f"--key {key}: not a private key") from None
        hint = f"; if it is encrypted, its password is taken from {PASSWORD}" if module == "signing" else ""
        raise UserError(f"--key {key}: cannot be used: {_reason(error)}. Expected an elliptic curve key as PEM{hint}") from None


def _password() -> bytes | None:
    password = os.environ.get(PASSWORD)
    return password.encode() if password else None


def _reason(error: Exception, alone: str = ".") -> str:
    """What the library or our own check said, in a line.

    Args:
        alone: name of the file, where it is one file that was signed; the library calls that a dot.
    """
    text = " ".join((str(error) or type(error).__name__).split())
    if type(error).__name__ == "InvalidSignature" or text.startswith("Key mismatch"):
        return "signed with another key, or the signature was changed"
    if text.startswith("Signature mismatch"):
        changed = [
            f"{alone if name == '.' else name} was changed" for name in re.findall(r"Hash mismatch for \\?'([^'\\]*)", text)
        ]
        parts = re.findall(r"Extra files found in model '[^']*': ([^\"]*)|Missing files in model '[^']*': ([^\"]*)", text)
        return "; ".join(changed + [f"not signed: {extra}" if extra else f"missing: {gone}" for extra, gone in parts])
    if isinstance(error, KeyError | UnicodeDecodeError | json.JSONDecodeError) or type(error).__name__ == "ValidationError":
        return f"not a signature of this format ({type(error).__name__})"
    return text[:400]
