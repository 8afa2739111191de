"""An audit as JSON, for machines."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.common.text import json_safe
from pipeline.look.audit.audit import Audit
from pipeline.look.audit.terminal import verdict


def as_json(audit: Audit) -> dict[str, Any]:
    """Everything that an audit found and looked at. Numbers that are not finite become null."""
    result = {
        "path": audit.path,
        "kind": audit.kind,
        "deep": audit.deep,
        "status": audit.status,
        "verdict": verdict(audit),
        "created": audit.created,
        "seconds": audit.seconds,
        "bytes": audit.bytes,
        "artifacts": [
            {"id": held.id, "kind": held.kind, "artifact": held.name, "url": held.folder.place.url} for held in audit.held
        ],
        "findings": [dataclasses.asdict(finding) for finding in audit.findings],
        "counts": [dataclasses.asdict(count) for count in audit.counts],
        "figures": [dataclasses.asdict(figure) for figure in audit.figures],
        "distributions": [dataclasses.asdict(distribution) for distribution in audit.distributions],
    }
    safe: dict[str, Any] = json_safe(result)
    return safe
