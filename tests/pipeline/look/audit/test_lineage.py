"""The graph from prompts to what was made last, in the terminal, drawn, and in two open formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.common.errors import UserError
from pipeline.look.audit.audit import audit
from pipeline.look.audit.drawing import NARROW, WIDE, WIDTH, draw
from pipeline.look.audit.exports import openlineage, prov
from pipeline.look.audit.findings import Ledger
from pipeline.look.audit.gather import gather
from pipeline.look.audit.lineage import Graph, as_json, find, graph_of
from pipeline.look.audit.scope import scope_of
from pipeline.look.audit.terminal import tree
from pipeline.run.record import load_run
from pipeline.store.store import load_artifact


def graph_at(path: Path) -> Graph:
    found = gather(scope_of(path), Ledger())
    return graph_of(found.audited, found.shelf)


def test_parents_come_before_children_and_nothing_twice(made: Path) -> None:
    graph = graph_at(made)
    seen: set[str] = set()
    for id, node in graph.nodes.items():
        assert {parent.id for parent in node.parents} <= seen
        seen.add(id)
    assert len(graph.nodes) == 14
    assert [leaf.kind for leaf in graph.leaves] == ["comparison"]


def test_the_lineage_of_an_artifact_is_its_ancestors(copied) -> None:
    graph = graph_at(copied.artifact("scores"))
    assert sorted(node.kind for node in graph.nodes.values()) == ["checkpoint", "prompts", "rollouts", "scores"]


def test_a_run_that_begins_with_another_runs_checkpoint_goes_back_to_its_prompts(copied) -> None:
    trained = copied.artifact("checkpoint", iteration=1)
    second = copied.go_on(trained)
    assert audit(second).status == 0
    base = load_run(second).iterations[0].policy
    graphs = [graph_at(place) for place in (second, base.path, second / "artifacts")]
    first = {node.id for node in graph_at(trained).nodes.values()}
    assert all(first < graph.nodes.keys() for graph in graphs)
    edge = [(parent.role, parent.id) for parent in graphs[1].nodes[base.id].parents]
    assert edge == [("original", load_artifact(trained).id)]


def test_an_original_that_is_gone_is_missed(copied) -> None:
    second = copied.go_on(copied.artifact("checkpoint", iteration=1))
    shutil.rmtree(copied.run)
    (missed,) = (one for one in audit(second).findings if one.severity != "note")
    assert (missed.check, missed.severity, missed.found) == ("parent", "warning", "no artifact with that id")
    assert missed.expected.endswith(", its original")


def test_a_parent_that_is_gone_is_a_node_without_content(copied) -> None:
    path = copied.artifact("rollouts", purpose="train")
    (path / "manifest.json").unlink()
    graph = graph_at(copied.artifact("shaped"))
    missing, shaped = graph.nodes.values()
    assert (missing.kind, missing.held, shaped.kind) == ("rollouts", None, "shaped")
    assert as_json(graph)["nodes"][0] == {"id": missing.id, "kind": "rollouts", "missing": True}


def test_a_manifest_that_names_itself_as_parent_ends_somewhere(copied) -> None:
    path = copied.artifact("shaped")
    id = json.loads((path / "manifest.json").read_text("utf-8"))["id"]
    text = (path / "manifest.json").read_text("utf-8")
    parent = json.loads(text)["content"]["parents"][0]["id"]
    (path / "manifest.json").write_text(text.replace(parent, id), encoding="utf-8")
    assert id in graph_at(copied.store).nodes


def test_an_id_is_found_by_its_first_digits(made: Path) -> None:
    shelf = gather(scope_of(made), Ledger()).shelf
    held = shelf.all[0]
    assert find(shelf, held.id[:10]) is held
    assert find(shelf, held.folder.name) is held
    with pytest.raises(UserError, match="begins like that"):
        find(shelf, "zz")
    with pytest.raises(UserError, match="14 artifacts begin like that"):
        find(shelf, "")


def test_the_tree_unfolds_every_artifact_once_and_names_commands(made: Path) -> None:
    graph = graph_at(made)
    out = StringIO()
    for part in tree(graph, graph.leaves):
        Console(file=out, width=200).print(part, highlight=False)
    lines = out.getvalue().splitlines()
    for node in graph.nodes.values():
        assert sum(node.short in line and "(above)" not in line for line in lines) == 1
    assert lines[0].startswith("comparison")
    assert sum(line.startswith("[1] ") for line in lines) == 1


@pytest.mark.parametrize(("across", "page"), [(WIDE, 1330), (NARROW, 376)])
def test_every_artifact_stands_below_its_parents_and_all_of_them_fit_the_page(made: Path, across: int, page: int) -> None:
    graph = graph_at(made)
    picture = draw(graph, across)
    boxes = {box.node.id: box for box in picture.boxes}
    for node in graph.nodes.values():
        assert all(boxes[parent.id].y < boxes[node.id].y for parent in node.parents)
    places = [(box.x, box.y) for box in boxes.values()]
    assert len(set(places)) == len(places) == len(graph.nodes)
    assert picture.width <= page
    assert max(box.x for box in picture.boxes) + WIDTH <= picture.width


def test_prov_has_an_entity_and_an_activity_per_artifact_and_a_use_per_parent(made: Path) -> None:
    graph = graph_at(made)
    document = prov(graph)
    edges = sum(len(node.parents) for node in graph.nodes.values())
    sizes = {part: len(document[part]) for part in ("entity", "activity", "wasGeneratedBy", "used", "wasDerivedFrom")}
    assert sizes == {"entity": 14, "activity": 14, "wasGeneratedBy": 14, "used": edges, "wasDerivedFrom": edges}
    for use in document["used"].values():
        assert use["prov:activity"] in document["activity"] and use["prov:entity"] in document["entity"]
    assert all(name.startswith(("rollbook:", "_:")) for part in sizes for name in document[part])
    json.dumps(document, allow_nan=False)


def test_openlineage_has_a_start_and_an_end_per_artifact_that_name_its_parents(made: Path) -> None:
    graph = graph_at(made)
    events = openlineage(graph)
    assert [event["eventType"] for event in events] == ["START", "COMPLETE"] * 14
    by_output: dict[str, Any] = {event["outputs"][0]["facets"]["version"]["datasetVersion"]: event for event in events}
    for node in graph.nodes.values():
        inputs = by_output[node.id]["inputs"]
        assert [one["facets"]["version"]["datasetVersion"] for one in inputs] == [parent.id for parent in node.parents]
        assert [one["inputFacets"]["rollbook_role"]["role"] for one in inputs] == [parent.role for parent in node.parents]
    for event in events:
        assert {"eventTime", "producer", "schemaURL", "run", "job"} <= event.keys()
        facets = [*event["run"]["facets"].values(), *event["job"]["facets"].values()]
        assert all({"_producer", "_schemaURL"} <= facet.keys() for facet in facets)
    assert len({event["run"]["runId"] for event in events}) == 14


def test_of_a_run_the_ancestry_of_its_last_checkpoint_is_printed(
    rollbook: Callable[..., tuple[int, str, str]], finished: Path
) -> None:
    status, out, err = rollbook("lineage", finished)
    assert (status, err) == (0, "")
    record = json.loads((finished / "run.json").read_text(encoding="utf-8"))
    last = record["iterations"][-1]["policy"]["path"].removeprefix("artifacts/")
    assert out.startswith("checkpoint ") and last in out.splitlines()[0]
    assert out.rstrip().endswith("other artifacts of the run with --all")
    assert len(rollbook("lineage", finished, "--all")[1].splitlines()) > len(out.splitlines())
