"""What a new stage takes: a module that works, a function that makes its order, and a line where it is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.answers import looking, working
from pipeline.config.run import RunConfig
from pipeline.run.order import Job, Missing, Order, only
from pipeline.run.processes import Processes
from pipeline.store import Artifact, Request

MODULE = """
from pipeline.run.process import each, serve
from pipeline.store import Artifact, Request, Store

def nothing(spec, reporter):
    with Store(spec["store"], reporter.note).work(Request.from_json(spec["request"])) as work:
        if isinstance(work, Artifact):
            return {"artifact": str(work.path)}
        reporter.note(f"did nothing with {spec['checkpoint']}")
        return {"artifact": str(work.finish({"iteration": 0}).path)}

if __name__ == "__main__":
    serve(each(nothing))
"""


def nothing_order(config: RunConfig, iteration: int, checkpoint: Artifact) -> Order:
    request = Request("checkpoint", "nothing/1", {"seed": config.seed}, (checkpoint.as_parent("policy"),))
    job = Job(request=request, told={"checkpoint": checkpoint.id})
    return Order(title=f"nothing {iteration}", module="nothing_stage", jobs=(job,))


def test_a_stage_is_a_module_an_order_function_and_a_line(
    tmp_path: Path, make_config: Callable[..., RunConfig], make_artifact: Callable[..., Artifact]
) -> None:
    (tmp_path / "nothing_stage.py").write_text(MODULE, encoding="utf-8")
    config, told = make_config({"run_dir": str(tmp_path / "run")}), []
    checkpoint = make_artifact("checkpoint")
    order = nothing_order(config, 3, checkpoint)
    with pytest.raises(Missing, match="nothing 3"):
        looking(config).answer(order)
    processes = Processes({"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"})
    try:
        made = only(working(config, processes, lambda title, event: told.append((title, event["event"]))).answer(order))
    finally:
        processes.close()
    assert told == [("nothing 3", "started"), ("nothing 3", "note"), ("nothing 3", "finished")]
    assert made.parent("policy").id == checkpoint.id
    assert only(looking(config).answer(order)).id == made.id
