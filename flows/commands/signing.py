"""`rollbook sign` and `rollbook verify`."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from pipeline.common.text import visible
from pipeline.look.show.subject import find_subject
from pipeline.look.upkeep.signing import sign, targets, verify


def sign_place(path: str, key: Path, signatures: Path | None, as_json: bool) -> None:
    """Sign what lies at a path, and say where the signatures are."""
    made = []
    for target in sign(targets(find_subject(path), signatures), key):
        made.append({"name": target.name, "signature": str(target.signature)})
        if not as_json:
            typer.echo(visible(f"signed {target.name}  {target.signature}"))
    typer.echo(json.dumps({"signed": made}, indent=2) if as_json else f"{len(made)} signatures")


def verify_place(path: str, key: Path, signatures: Path | None, as_json: bool) -> bool:
    """Compare what lies at a path with its signatures. Returns whether all of it is signed and unchanged."""
    verdicts = []
    for verdict in verify(targets(find_subject(path), signatures), key):
        verdicts.append(verdict)
        if not as_json:
            typer.echo(visible(f"{verdict.state:8}  {verdict.name}" + (f"  {verdict.why}" if verdict.why else "")))
    good = sum(verdict.state == "signed" for verdict in verdicts)
    if as_json:
        found = [{"name": verdict.name, "state": verdict.state, "why": verdict.why} for verdict in verdicts]
        typer.echo(json.dumps({"signed": good == len(verdicts), "found": found}, indent=2))
    else:
        typer.echo(f"{good} of {len(verdicts)} are signed with this key and unchanged")
    return good == len(verdicts)
