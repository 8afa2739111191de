"""`rollbook import`: completions made elsewhere, as rollouts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from pipeline.exchange.imports.stage import ImportPlan
    from pipeline.store import Artifact, Store

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Pairs = list[str] | None
LOG_SECONDS = 5.0
"""Seconds between lines of progress."""


def import_(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="Files of completions (JSONL, Parquet and others), directories of them, or one rollouts artifact.",
        ),
    ],
    store: Annotated[
        str, typer.Option("--store", "-s", help="Where the artifact goes: a directory or s3://bucket/prefix.", show_default=False)
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            help="A format of docs/other-data.md, such as trl or verl. Default: told by the first rows' columns.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Model directory or hub name whose tokenizer makes tokens of text, or text of tokens."
        ),
    ] = None,
    columns: Annotated[
        Pairs,
        typer.Option(
            "--map", help="With plain or expert: our name=the source's column or a path below one, such as reward=metrics.acc."
        ),
    ] = None,
    explode: Annotated[
        str | None, typer.Option(help="Columns of aligned lists, such as generations,scores: each place becomes a row.")
    ] = None,
    rewards: Annotated[
        str | None, typer.Option(help="Columns that are parts of the reward, such as accuracy,format. trl and plain.")
    ] = None,
    weights: Annotated[
        Pairs, typer.Option("--reward-weight", help="Weight of a part, such as format=0.5, where there is no total. Default: 1.")
    ] = None,
    reward: Annotated[float | None, typer.Option(help="Reward of completions that have none: your statement.")] = None,
    template: Annotated[
        str, typer.Option(help="Prompts that are text: what the model is given; {question} is replaced.")
    ] = "{question}",
    chat: Annotated[bool, typer.Option("--chat", help="Render prompts that are text as a user's chat message.")] = False,
    eos: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(help="End tokens made from text with the end token. auto: where the source says that it was drawn."),
    ] = "auto",
    temperature: Annotated[float | None, typer.Option(min=0, help="How it was sampled, where the source does not say.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="The same.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="The same; 0: not cut.")] = None,
    min_p: Annotated[float | None, typer.Option(min=0, max=1, help="The same.")] = None,
    logprobs_mode: Annotated[
        Literal["processed_logprobs", "raw_logprobs"] | None, typer.Option(help="What the source's logprobs are.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Name of the model that answered.")] = None,
    bad_rows: Annotated[
        Literal["set_aside", "refuse"], typer.Option(help="Rows that do not fit: keep them aside with their reasons, or stop.")
    ] = "set_aside",
    logprobs_from: Annotated[
        Path | None,
        typer.Option(help="Checkpoint that scores completions without known logprobs: an artifact, or a model directory."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that ships with the model. Read it first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read completions made elsewhere into a rollouts artifact: what is known is kept, what is not is marked.

    The same files with the same options are found, not read again. docs/other-data.md has every format.

    - `rollbook import out/completions --store runs/mine/artifacts --model Qwen/dir` (TRL)
    - `rollbook import answers.jsonl -f expert -m data/base -s store --reward 1 --map completion=solution`
    - `rollbook import store/rollouts/77d0... -s store --logprobs-from data/base`
    """
    from rich.console import Console

    from pipeline.store import Store as OpenStore

    console = Console(stderr=True)
    place = OpenStore(store)
    artifact = _one_artifact(paths)
    there = True
    if artifact is None:
        from pipeline.exchange.imports.format import Options
        from pipeline.exchange.imports.rows import Declared
        from pipeline.exchange.imports.stage import import_rollouts, order_of
        from pipeline.exchange.imports.tokens import ImportRendering
        from pipeline.sources.tokenizer import leave_torch_out

        if not trust_remote_code and logprobs_from is None:
            leave_torch_out()
        sampling: dict[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "logprobs_mode": logprobs_mode,
        }
        order: ImportPlan = order_of(
            paths,
            form,
            model=_located(model),
            options=Options(
                _pairs("--map", columns),
                tuple(rewards.split(",")) if rewards is not None else None,
                tuple(explode.split(",")) if explode is not None else (),
            ),
            declared=Declared(**sampling, policy=policy, reward=reward, reward_weights=_weights(weights)),
            rendering=ImportRendering(template=template, chat=chat, eos=eos),
            bad_rows=bad_rows,
            trust_remote_code=trust_remote_code,
        )
        files = f"{len(order.files)} files" if len(order.files) > 1 else str(order.files[0])
        console.print(f"import: {files} as {order.form.name}: {order.form.title}", markup=False, highlight=False)
        artifact, there = import_rollouts(place, order, _teller(console.print))
    if logprobs_from is not None:
        artifact, there = _scored(place, artifact, logprobs_from, trust_remote_code, console)
    _conclude(artifact, there, as_json)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("import")(import_)


def _located(model: str | None) -> Path | None:
    from pipeline.config.data import ModelConfig
    from pipeline.sources.models import locate

    return None if model is None else locate(ModelConfig(path=model))


def _one_artifact(paths: Sequence[Path]) -> Artifact | None:
    """The rollouts artifact that is to be scored, if the path is one."""
    from pipeline.common.errors import UserError
    from pipeline.store.store import load_artifact

    if len(paths) != 1 or not (paths[0] / "manifest.json").is_file():
        return None
    artifact = load_artifact(paths[0])
    if artifact.kind != "rollouts":
        raise UserError(f"{paths[0]}: a {artifact.kind} artifact; name rollouts, or files to import")
    return artifact


def _scored(place: Store, rollouts: Artifact, checkpoint: Path, trusted: bool, console: Any) -> tuple[Artifact, bool]:
    from flows.commands.console import StageConsole
    from pipeline.exchange.imports.score import score_with

    with StageConsole(console) as stages:
        return score_with(place, rollouts, checkpoint, stages.tell, trust_remote_code=trusted)


def _conclude(artifact: Artifact, there: bool, as_json: bool) -> None:
    summary = artifact.summary
    if as_json:
        found = {"path": artifact.url, "id": artifact.id, "found": there, "format": artifact.recipe.get("format"), **summary}
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{'found' if there else 'made'}: {artifact.url}")
    console.print(f"  {summary['completions']:,} completions in {summary['groups']:,} groups, {summary['tokens']:,} tokens")
    for line in [*artifact.manifest.provenance.notes.get("remarks", []), *_remarks(artifact)]:
        console.print(f"  {line}")


def _remarks(artifact: Artifact) -> list[str]:
    """What is not known, and what can be done about it."""
    summary = artifact.summary
    said = {
        "set_aside": "rows did not fit; set-aside.parquet beside the rollouts has each with its place and reason",
        "retokenized": "completions have tokens made from text: perhaps not those that were drawn",
        "without_logprobs": "have no behavior logprobs, so methods with a ratio refuse them. Remedy: --logprobs-from CHECKPOINT",
        "scored": "have logprobs scored with the checkpoint, which stand for those of the policy that drew them",
        "without_sampling": "do not say how they were sampled. If you know: --temperature, --top-p, --top-k, --min-p",
        "without_reward": "have no reward and are trained on by no method as they are. Grade them, or state one: --reward 1",
    }
    return [f"{summary[name]:,} {text}" for name, text in said.items() if summary.get(name)]


def _teller(say: Callable[..., None]) -> Callable[[int, int], None]:
    """Tells every few seconds."""
    told = [time.monotonic()]

    def tell(done: int, aside: int) -> None:
        if time.monotonic() - told[0] >= LOG_SECONDS:
            told[0] = time.monotonic()
            say(f"import: {done:,} completions read, {aside:,} rows set aside", markup=False, highlight=False)

    return tell


def _pairs(option: str, texts: Pairs) -> dict[str, str]:
    from pipeline.common.errors import UserError

    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value) or name in found:
            raise UserError(f"{option} {text}: expected name=value, each name once, such as {option} reward=score")
        found[name] = value
    return found


def _weights(texts: Pairs) -> dict[str, float]:
    from pipeline.common.errors import UserError

    try:
        return {name: float(value) for name, value in _pairs("--reward-weight", texts).items()}
    except ValueError as error:
        raise UserError(f"--reward-weight: {error}") from None
