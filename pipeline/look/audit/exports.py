"""Lineage in two open formats: W3C PROV-JSON, and OpenLineage run events."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from pipeline.look.audit.lineage import Graph, LineageNode

NAMESPACE = "urn:rollbook:"
"""Of ids in PROV."""
JOBS = "rollbook"
"""Namespace of jobs and datasets in OpenLineage."""
PRODUCER = "urn:rollbook:producer"
RUN_EVENT = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
FACET = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/BaseFacet"
VERSION_FACET = "https://openlineage.io/spec/facets/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet"
JOB_TYPE_FACET = "https://openlineage.io/spec/facets/2-0-3/JobTypeJobFacet.json#/$defs/JobTypeJobFacet"


def prov(graph: Graph) -> dict[str, Any]:
    """The graph as PROV-JSON (https://www.w3.org/submissions/prov-json/).

    An artifact is an entity, the work that made it an activity, rollbook and the libraries an agent.
    """
    document: dict[str, Any] = {
        "prefix": {"rollbook": NAMESPACE, "prov": "http://www.w3.org/ns/prov#", "xsd": "http://www.w3.org/2001/XMLSchema#"},
        **{part: {} for part in ("entity", "activity", "agent", "used", "wasGeneratedBy", "wasDerivedFrom", "wasAssociatedWith")},
    }
    for node in graph.nodes.values():
        document["entity"][_entity(node.id)] = _entity_attributes(node)
        if node.held is None:
            continue
        provenance, activity = node.held.manifest.provenance, f"rollbook:work-{node.id}"
        started, ended = _span(node)
        document["activity"][activity] = {
            "prov:startTime": started.isoformat(),
            "prov:endTime": ended.isoformat(),
            "rollbook:stage": node.stage,
            "rollbook:command": node.command,
            "rollbook:host": provenance.host,
            **({"rollbook:git_commit": provenance.git_commit} if provenance.git_commit else {}),
        }
        agent = f"rollbook:software-{_version(node)}"
        versions = {f"rollbook:{name}": version for name, version in sorted(provenance.versions.items())}
        document["agent"].setdefault(agent, {"prov:type": {"$": "prov:SoftwareAgent", "type": "xsd:QName"}, **versions})
        document["wasAssociatedWith"][f"_:a-{node.id}"] = {"prov:activity": activity, "prov:agent": agent}
        generated = {"prov:entity": _entity(node.id), "prov:activity": activity, "prov:time": ended.isoformat()}
        document["wasGeneratedBy"][f"_:g-{node.id}"] = generated
        for number, parent in enumerate(node.parents):
            entity = _entity(parent.id)
            used = {"prov:activity": activity, "prov:entity": entity, "prov:role": parent.role}
            document["used"][f"_:u-{node.id}-{number}"] = used
            derived = {"prov:generatedEntity": _entity(node.id), "prov:usedEntity": entity, "prov:activity": activity}
            document["wasDerivedFrom"][f"_:d-{node.id}-{number}"] = derived
    return document


def openlineage(graph: Graph) -> list[dict[str, Any]]:
    """The graph as OpenLineage run events (https://openlineage.io/docs/spec/object-model).

    Of every artifact a START and a COMPLETE event: a run is the work that made it, a job the stage.
    """
    return [event for node in graph.nodes.values() if node.held is not None for event in _events(graph, node)]


def _events(graph: Graph, node: LineageNode) -> Iterator[dict[str, Any]]:
    assert node.held is not None
    manifest = node.held.manifest
    run = str(uuid.uuid5(uuid.NAMESPACE_URL, NAMESPACE + node.id))
    made = {"command": node.command, "host": manifest.provenance.host, "versions": manifest.provenance.versions}
    recipe = {"stage": node.stage, "key": manifest.content.key, "recipe": manifest.content.recipe}
    kind = {"processingType": "BATCH", "integration": "ROLLBOOK", "jobType": "STAGE"}
    facets = {"jobType": _facet(JOB_TYPE_FACET, **kind), "rollbook_recipe": _facet(FACET, **recipe)}
    for state, time in zip(("START", "COMPLETE"), _span(node), strict=True):
        yield {
            "eventType": state,
            "eventTime": time.isoformat(),
            "producer": PRODUCER,
            "schemaURL": RUN_EVENT,
            "run": {"runId": run, "facets": {"rollbook_work": _facet(FACET, **made)}},
            "job": {"namespace": JOBS, "name": node.stage.partition("/")[0], "facets": facets},
            "inputs": [
                {**_dataset(graph.nodes[parent.id]), "inputFacets": {"rollbook_role": _facet(FACET, role=parent.role)}}
                for parent in node.parents
            ],
            "outputs": [_dataset(node)],
        }


def _dataset(node: LineageNode) -> dict[str, Any]:
    """An artifact as a dataset: where it lies is its name, its id its version."""
    name = node.held.folder.place.url if node.held else f"{node.kind}/{node.id}"
    version = _facet(VERSION_FACET, datasetVersion=node.id)
    return {"namespace": JOBS, "name": name, "facets": {"version": version}}


def _facet(schema: str, **fields: Any) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": schema, **fields}


def _entity(id: str) -> str:
    return f"rollbook:{id}"


def _entity_attributes(node: LineageNode) -> dict[str, Any]:
    described = {"prov:type": f"rollbook:{node.kind}", "rollbook:kind": node.kind}
    if node.held is None:
        return {**described, "rollbook:missing": True}
    manifest = node.held.manifest
    files = sum(file.bytes for file in node.held.files)
    return {
        **described,
        "prov:location": node.held.folder.place.url,
        "rollbook:key": manifest.content.key,
        "rollbook:bytes": files,
        "rollbook:files": len(node.held.files),
    }


def _span(node: LineageNode) -> tuple[datetime, datetime]:
    assert node.held is not None
    provenance = node.held.manifest.provenance
    ended = datetime.fromisoformat(provenance.created)
    return ended - timedelta(seconds=provenance.seconds), ended


def _version(node: LineageNode) -> str:
    assert node.held is not None
    return node.held.manifest.provenance.versions.get("rollbook", "unknown")
