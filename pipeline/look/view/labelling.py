"""The page on which people compare two completions at a time: a key, or a button, for each verdict."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from pipeline.look.view.screens import Screen, harmless
from pipeline.regrade.pairs import LabelFile, ShownPair, Verdict

VERDICTS: Mapping[str, Verdict] = {"1": "first", "2": "second", "=": "equal"}
"""What the keys say."""
_HERE = Path(__file__).parent


class LabelPages:
    """Shows the next pair that has no label, and writes down what is said of it before the one behind it is shown.

    Args:
        pairs: in the order in which they are shown.
        labels: the file; pairs that it has are left out.
        wanted: labels to give in all.
    """

    def __init__(self, pairs: Sequence[ShownPair], labels: LabelFile, wanted: int) -> None:
        self._left = {pair.group_id: pair for pair in pairs if not labels.has(pair)}
        self._labels, self._wanted, self._lock = labels, wanted, threading.Lock()
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=harmless,
        )
        self._style, self._script = ((_HERE / name).read_text(encoding="utf-8") for name in ("view.css", "label.js"))

    @property
    def policy(self) -> str:
        """Our style sheet, our script for the keys, forms of our own, and nothing else."""
        style, script = (
            base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (self._style, self._script)
        )
        return (
            f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; form-action 'self'; "
            "base-uri 'none'; frame-ancestors 'none'"
        )

    def show(self, name: str, asked: Mapping[str, str]) -> Screen | None:
        if name:
            return None
        with self._lock:
            done = len(self._labels)
            pair = next(iter(self._left.values()), None) if done < self._wanted else None
        page = self._environment.get_template("label.html.j2")
        return Screen(
            200,
            page.render(
                title="labels",
                style=Markup(self._style),
                script=Markup(self._script),
                pair=pair,
                done=done,
                wanted=self._wanted,
            ),
        )

    def take(self, name: str, given: Mapping[str, str]) -> bool:
        """A verdict, or `s` to skip a pair until the page is started again. What was sent twice counts once.

        Raises:
            ValueError: neither.
        """
        if name != "label":
            return False
        verdict = given.get("verdict", "")
        if verdict != "s" and verdict not in VERDICTS:
            raise ValueError
        with self._lock:
            pair = self._left.pop(given.get("group", ""), None)
            if pair is not None and verdict != "s" and not self._labels.has(pair) and len(self._labels) < self._wanted:
                self._labels.add(pair, VERDICTS[verdict])
        return True
