"""`rollbook label --page`: pairs in a browser, a key for each, and the file that the terminal writes too."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from pipeline.look.view.labelling import LabelPages
from pipeline.look.view.server import FormServer
from pipeline.regrade.pairs import LabelFile, pairs_of
from pipeline.store import Artifact

Serve = Callable[..., FormServer]


@pytest.fixture
def serve(stored: Artifact, tmp_path: Path) -> Iterator[Serve]:
    """serve(wanted=3): the page over the stored pairs, their labels in labels.jsonl."""
    servers: list[FormServer] = []

    def start(wanted: int = 5) -> FormServer:
        labels = LabelFile(tmp_path / "labels.jsonl", stored, "ada")
        server = FormServer(LabelPages(list(pairs_of(stored, seed=0)), labels, wanted))
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(server: FormServer, path: str, form: dict[str, str] | None = None, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("POST" if form is not None else "GET", path, urlencode(form or {}), headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def labels_in(place: Path) -> list[dict[str, Any]]:
    path = place / "labels.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_verdicts_are_written_as_the_terminal_writes_them(serve: Serve, stored: Artifact, tmp_path: Path) -> None:
    server, pairs = serve(), list(pairs_of(stored, seed=0))
    for pair, verdict in zip(pairs, ("1", "2", "=", "s"), strict=False):
        status, text = ask(server, f"/{server.token}/")
        assert status == 200 and pair.group_id in text
        assert ask(server, f"/{server.token}/label", {"group": pair.group_id, "verdict": verdict})[0] == 303
    found = labels_in(tmp_path)
    assert [(one["group_id"], one["score_chosen"], one["annotator"]) for one in found] == [
        (pairs[0].group_id, 1.0, "ada"),
        (pairs[1].group_id, 1.0, "ada"),
        (pairs[2].group_id, 0.5, "ada"),
    ]
    assert [one["chosen_index"] for one in found] == [pairs[0].indices[0], pairs[1].indices[1], pairs[2].indices[0]]
    assert pairs[4].group_id in ask(server, f"/{server.token}/")[1]


def test_it_goes_on_where_it_ended_and_stops_at_the_number_wanted(serve: Serve, stored: Artifact, tmp_path: Path) -> None:
    pairs, first = list(pairs_of(stored, seed=0)), serve()
    ask(first, f"/{first.token}/label", {"group": pairs[0].group_id, "verdict": "s"})
    ask(first, f"/{first.token}/label", {"group": pairs[1].group_id, "verdict": "1"})
    again = serve(wanted=2)
    text = ask(again, f"/{again.token}/")[1]
    assert pairs[0].group_id in text and "1 of 2 pairs are labelled" in text  # what was skipped comes again
    ask(again, f"/{again.token}/label", {"group": pairs[0].group_id, "verdict": "2"})
    assert "Nothing left to compare" in ask(again, f"/{again.token}/")[1]
    assert ask(again, f"/{again.token}/label", {"group": pairs[2].group_id, "verdict": "1"})[0] == 303
    assert len(labels_in(tmp_path)) == 2


def test_what_is_sent_twice_counts_once(serve: Serve, stored: Artifact, tmp_path: Path) -> None:
    server, (pair, *_) = serve(), pairs_of(stored, seed=0)
    for verdict in ("1", "2"):
        assert ask(server, f"/{server.token}/label", {"group": pair.group_id, "verdict": verdict})[0] == 303
    assert [one["chosen_index"] for one in labels_in(tmp_path)] == [pair.indices[0]]


@pytest.mark.parametrize(
    ("path", "form", "headers", "status"),
    [
        ("{token}/label", {"verdict": "1"}, {"Host": "evil.example"}, 421),
        ("x{token}/label", {"verdict": "1"}, {}, 404),
        ("{token}/other", {"verdict": "1"}, {}, 404),
        ("{token}/label", {"verdict": "9"}, {}, 400),
        ("{token}/label", {"verdict": "1", "group": "x" * 70_000}, {}, 413),
        ("{token}/label", {"verdict": "1", "group": "none such"}, {}, 303),
    ],
)
def test_what_is_no_verdict_of_this_page_changes_nothing(
    serve: Serve, tmp_path: Path, path: str, form: dict[str, str], headers: dict[str, str], status: int
) -> None:
    server = serve()
    assert ask(server, "/" + path.format(token=server.token), form, **headers)[0] == status
    assert not labels_in(tmp_path)


def test_the_command_prints_the_address_and_ends_by_itself_on_ctrl_c(stored: Artifact, tmp_path: Path) -> None:
    import signal

    command = [sys.executable, "-c", "import flows.cli; flows.cli.main()", "label", str(stored.path), "--page"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "labels.jsonl")],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert "0 of 5 pairs are labelled" in process.stdout.read()
    assert process.returncode == 0


@pytest.mark.chromium
@pytest.mark.timeout(300)
def test_keys_label_pairs_in_a_browser(browser: Any, serve: Serve, stored: Artifact, tmp_path: Path) -> None:
    server, pairs = serve(), list(pairs_of(stored, seed=0))
    for width in (1400, 400):
        for dark in (False, True):
            browser.open(server.url, width, dark=dark)
            assert browser.too_wide()[0] == []
    for key in ("2", "x", "S", "="):
        browser.value(f"document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))")
        if key != "x":  # no verdict
            browser._wait("Page.loadEventFired")
    assert browser.value("document.querySelector('[name=group]').value") == pairs[3].group_id
    found = [(one["group_id"], one["chosen_index"], one["score_chosen"]) for one in labels_in(tmp_path)]
    assert found == [
        (pairs[0].group_id, pairs[0].indices[1], 1.0),
        (pairs[2].group_id, pairs[2].indices[0], 0.5),
    ]
