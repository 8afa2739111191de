"""Signatures of artifacts, made and verified without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

Rollbook = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """key.pem and key.pub, other.pub, an encrypted one, and one of another kind."""
    directory = tmp_path_factory.mktemp("keys")
    plain, locked = serialization.NoEncryption(), serialization.BestAvailableEncryption(b"secret")
    for name in ("key", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        (directory / f"{name}.pem").write_bytes(key.private_bytes(*form, plain))
        (directory / f"{name}.locked").write_bytes(key.private_bytes(*form, locked))
        public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        (directory / f"{name}.pub").write_bytes(public)
    other = rsa.generate_private_key(65537, 2048)
    (directory / "rsa.pem").write_bytes(other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return directory


def verdict(rollbook: Rollbook, place: Path, key: Path) -> tuple[str, str]:
    status, out, err = rollbook("verify", place, "--key", key, "--json")
    found = json.loads(out)
    assert (status, err) == (0 if found["signed"] else 1, "")
    return found["found"][0]["state"], found["found"][0]["why"]


def test_a_run_is_signed_artifact_by_artifact(rollbook: Rollbook, finished: Path, parts: dict[str, Path], keys: Path) -> None:
    status, out, err = rollbook("sign", finished, "--key", keys / "key.pem")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "11 signatures"
    assert parts["rollouts"].with_name(parts["rollouts"].name + ".sig").exists()
    status, out, _ = rollbook("verify", finished, "--key", keys / "key.pub")
    assert (status, out.splitlines()[-1]) == (0, "11 of 11 are signed with this key and unchanged")
    (finished / "run.json").write_text((finished / "run.json").read_text() + "\n", encoding="utf-8")
    status, out, _ = rollbook("verify", finished, "--key", keys / "key.pub")
    assert status == 1 and "wrong     run.json  run.json was changed" in out


def test_every_change_of_a_signed_artifact_shows(rollbook: Rollbook, parts: dict[str, Path], keys: Path, tmp_path: Path) -> None:
    assert verdict(rollbook, parts["rollouts"], keys / "key.pub")[0] == "unsigned"
    rollbook("sign", parts["rollouts"], "--key", keys / "key.pem")
    assert verdict(rollbook, parts["rollouts"], keys / "key.pub") == ("signed", "")
    assert verdict(rollbook, parts["rollouts"], keys / "other.pub") == (
        "wrong",
        "signed with another key, or the signature was changed",
    )
    place = tmp_path / "moved"
    for change, why in {
        "nothing": "",
        "manifest.json": "manifest.json was changed",
        "extra": "not in the manifest",
        ".git": "not signed: .git",
        "part-00000.parquet": "was changed after it was written",
        "signature": "not a signature of this format (JSONDecodeError)",
    }.items():
        shutil.copytree(parts["rollouts"], place)
        shutil.copy(parts["rollouts"].with_name(parts["rollouts"].name + ".sig"), tmp_path / "moved.sig")
        if change == "signature":
            (tmp_path / "moved.sig").write_text("{", encoding="utf-8")
        elif change == "manifest.json":
            text = (place / change).read_text(encoding="utf-8")
            (place / change).write_text(text.replace('"seconds": ', '"seconds": 1'), encoding="utf-8")
        elif change != "nothing":
            with (place / change).open("ab") as file:
                file.write(b"x")
        state, said = verdict(rollbook, place, keys / "key.pub")
        if change == "part-00000.parquet":
            assert (state, "bytes, the manifest says" in said) == ("wrong", True)
        else:
            assert (state, why in said) == ("signed" if change == "nothing" else "wrong", True), (change, said)
        shutil.rmtree(place)


def test_what_is_damaged_is_not_signed(rollbook: Rollbook, parts: dict[str, Path], keys: Path) -> None:
    (parts["rollouts"] / "part-00001.parquet").unlink()
    status, _, err = rollbook("sign", parts["rollouts"], "--key", keys / "key.pem")
    assert status == 2 and "listed in the manifest but missing" in err
    assert not parts["rollouts"].with_name(parts["rollouts"].name + ".sig").exists()


def test_signatures_may_lie_elsewhere(rollbook: Rollbook, parts: dict[str, Path], keys: Path, tmp_path: Path) -> None:
    for command, key in (("sign", "key.pem"), ("verify", "key.pub")):
        options = ("--key", keys / key, "--signatures", tmp_path / "signatures")
        assert rollbook(command, parts["shaped"], *options)[0] == 0
    assert [path.name for path in (tmp_path / "signatures").iterdir()] == [f"shaped-{parts['shaped'].name}.sig"]


@pytest.mark.parametrize(
    ("command", "key", "said"),
    [
        ("sign", "rsa.pem", "cannot be used: "),
        ("sign", "key.pub", "key.pub: not a private key"),
        ("sign", "key.locked", "its password is taken from ROLLBOOK_KEY_PASSWORD"),
        ("verify", "key.pem", "a private key; verify with the public one (openssl ec -in KEY -pubout)"),
        ("verify", "nothing", "nothing: no such file"),
    ],
)
def test_a_key_that_cannot_be_used_is_refused(
    rollbook: Rollbook, parts: dict[str, Path], keys: Path, command: str, key: str, said: str
) -> None:
    status, _, err = rollbook(command, parts["shaped"], "--key", keys / key)
    assert status == 2 and said in err


def test_the_password_of_a_key_comes_from_the_environment(
    rollbook: Rollbook, parts: dict[str, Path], keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLBOOK_KEY_PASSWORD", "secret")
    assert rollbook("sign", parts["shaped"], "--key", keys / "key.locked")[0] == 0
    assert verdict(rollbook, parts["shaped"], keys / "key.pub") == ("signed", "")
