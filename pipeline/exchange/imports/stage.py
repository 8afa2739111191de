"""The import: source files in, a rollouts artifact out."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import polars as pl

from pipeline.common.ahead import ahead
from pipeline.common.errors import DataError, UserError
from pipeline.exchange.imports.detect import detect, formats, other_format
from pipeline.exchange.imports.explode import exploded
from pipeline.exchange.imports.format import Format, Options
from pipeline.exchange.imports.gather import Gathering
from pipeline.exchange.imports.known import Known, Misfit, Position, SourceRow
from pipeline.exchange.imports.read import first_columns, names_of, read_batches, read_rows, source_files
from pipeline.exchange.imports.rows import Declared, RowMaker
from pipeline.exchange.imports.simple import SimpleBatch, SimpleRows
from pipeline.exchange.imports.tokens import ImportRendering, SourceTokenizer, tokenizer_hashes
from pipeline.generate.summary import read_scalars, summarize
from pipeline.generate.unknowns import count_unknowns
from pipeline.store import Artifact, Request, Store
from pipeline.store.files import sha256_of
from pipeline.store.work import Work
from schemas import Origins, Rollouts, SetAside

STAGE = "import-rollouts/3"
UNKNOWNS = ("without_logprobs", "without_reward", "without_sampling", "retokenized")
"""Figures of the summary: how many completions lack what some methods need."""
BATCH = 256
"""Completions that are tokenized together."""
WRITERS = 2
"""Files that are written at the same time."""
HOPELESS = 1000
"""Rows that do not fit before any does, after which an import gives up."""
MOST_TOLD = 5
"""Bad rows that a refusal names."""
ReadBatch = tuple[list[SourceRow | Misfit], Position]
MadeBatch = tuple[list[SourceRow | Misfit], SimpleBatch | None, Position]
OnProgress = Callable[[int, int], None]
"""Called with the number of completions that were read, and of rows that were set aside."""


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """What to import, and what the user says of it."""

    files: tuple[Path, ...]
    form: type[Format]
    model: Path | None = None
    options: Options = field(default_factory=Options)
    declared: Declared = field(default_factory=Declared)
    rendering: ImportRendering = field(default_factory=ImportRendering)
    bad_rows: Literal["set_aside", "refuse"] = "set_aside"
    trust_remote_code: bool = False

    def request(self) -> Request:
        """Known before the work: the sources' bytes, the tokenizer's, and what the user said decide the result."""
        names = names_of(self.files)
        sources = [
            {"name": name, "bytes": file.stat().st_size, "sha256": sha256_of(file)}
            for name, file in zip(names, self.files, strict=True)
        ]
        said = {name: value for name, value in asdict(self.declared).items() if value not in (None, {})}
        mapping = {**self.form.fields, **{theirs: ours for ours, theirs in self.options.columns.items()}}
        recipe: dict[str, Any] = {
            "sources": sources,
            "format": self.form.name,
            "mapping": mapping,
            "declared": said,
            "rendering": asdict(self.rendering),
        }
        if self.options.columns:
            recipe["columns"] = self.options.columns
        if self.options.explode:
            recipe["explode"] = list(self.options.explode)
        beside = sorted({found for file in self.files if (found := self.form.beside(file)) is not None})
        if beside:
            recipe["beside"] = [{"name": file.name, "sha256": sha256_of(file)} for file in beside]
        if self.options.rewards is not None:
            recipe["reward_columns"] = list(self.options.rewards)
        if self.model is not None:
            recipe["tokenizer"] = tokenizer_hashes(self.model, trust_remote_code=self.trust_remote_code)
        return Request("rollouts", STAGE, recipe)


def order_of(paths: Sequence[Path], form: str | None, **settings: Any) -> ImportPlan:
    """An order with its files found and its format known.

    Args:
        form: name of a format; None to tell it by the first rows.

    Raises:
        UserError: no such file or format, or the format cannot be told.
    """
    files = tuple(source_files(paths, [pattern for one in formats().values() for pattern in one.not_rows]))
    if form is None:
        chosen = detect(first_columns(files), str(files[0]))
    elif form in formats():
        chosen = formats()[form]
    else:
        raise UserError(f"--format {form}: expected one of {', '.join(formats())}")
    chosen.refuse(files)
    return ImportPlan(files=tuple(chosen.ordered(files)), form=chosen, **settings)


def import_rollouts(store: Store, order: ImportPlan, on_progress: OnProgress = lambda done, aside: None) -> tuple[Artifact, bool]:
    """Make the rollouts artifact of an order. Returns it, and whether it was there already.

    Raises:
        UserError: the source needs a tokenizer and none is named, or the format cannot be mapped as asked.
        DataError: a file cannot be read, no row fits, or one does not and such rows are refused.
    """
    request = order.request()
    if (found := store.find(request)) is not None:
        return found, True
    with store.work(request) as work:
        if not isinstance(work, Work):
            return work, True
        gathering = Gathering(work.scratch / "import", request.key)
        try:
            remarks = _gather(gathering, order, on_progress)
        except UserError:
            _leave_nothing(work)
            raise
        return _written(work, gathering, order, remarks), False


def _leave_nothing(work: Work) -> None:
    """Of an import that was refused there is nothing to go on from."""
    shutil.rmtree(work.scratch, ignore_errors=True)
    with suppress(OSError):
        work.path.rmdir()


def _gather(gathering: Gathering, order: ImportPlan, on_progress: OnProgress) -> list[str]:
    """Every completion on its way to its group. Returns what is to be said of how they were read.

    Of a format that remembers, a position counts completions: its rows are read from the first one again, which is the lesser
    work, and those that are gathered are passed over.
    """
    tokens = SourceTokenizer(
        order.model,
        order.rendering,
        whole_answers=order.form.ends_with_eos,
        trust_remote_code=order.trust_remote_code,
    )
    reader = order.form(order.options)
    rows, simple = RowMaker(reader, tokens, order.declared), SimpleRows(reader, tokens, order.declared)
    reader.remarks = dict.fromkeys(gathering.remarks)

    def one_by_one(known: Iterator[Known]) -> Iterator[int]:
        """Gathers completions, and says how many each time."""
        while batch := list(islice(known, BATCH)):
            for one in rows.of(batch):
                gathering.leave_out(one) if isinstance(one, Misfit) else gathering.add(*one)
            told()
            yield len(batch)

    def read(found: Iterable[SourceRow | Misfit]) -> Iterator[Known]:
        return _read(reader, exploded(found, order.options.explode), gathering)

    def told() -> None:
        on_progress(gathering.added + len(gathering.set_aside), len(gathering.set_aside))
        _refuse(gathering, order, at_end=False)

    if not order.form.remembers:
        simply = not order.options.explode
        for batch, made, position in ahead(_made(ahead(read_batches(order.files, gathering.position)), simple, simply=simply)):
            if made is None:
                deque(one_by_one(read(batch)), 0)
            else:
                for row in batch:
                    if isinstance(row, Misfit):
                        gathering.leave_out(row)
                gathering.add_batch(made)
                told()
            gathering.reached(position, [*reader.remarks, *tokens.remarks])
    elif gathering.position[0] < len(order.files):
        _, done = gathering.position
        for count in one_by_one(islice(read(read_rows(order.files)), done, None)):
            done += count
            gathering.reached((0, done), [*reader.remarks, *tokens.remarks])
    remarks = list(dict.fromkeys([*reader.remarks, *tokens.remarks]))
    gathering.flush()
    _refuse(gathering, order, at_end=True)
    gathering.reached((len(order.files), 0), remarks, at_end=True)
    return remarks


def _made(batches: Iterable[ReadBatch], simple: SimpleRows, *, simply: bool) -> Iterator[MadeBatch]:
    """Batches with their rows made, where these are simple."""
    for batch, position in batches:
        whole = [row for row in batch if isinstance(row, SourceRow)]
        yield batch, simple.of(whole) if whole and simply else None, position


def _read(reader: Format, rows: Iterable[SourceRow | Misfit], gathering: Gathering) -> Iterator[Known]:
    """The completions that the format finds; lines that are no rows go aside before it sees them."""

    def whole() -> Iterator[SourceRow]:
        for row in rows:
            if isinstance(row, Misfit):
                gathering.leave_out(row)
            else:
                yield row

    for found in reader.read(whole()):
        if isinstance(found, Misfit):
            gathering.leave_out(found)
        else:
            yield found


def _refuse(gathering: Gathering, order: ImportPlan, *, at_end: bool) -> None:
    """Give up where nothing fits, or anything does not that must."""
    bad = gathering.set_aside
    fitting = gathering.rows if at_end else gathering.added
    if at_end and not bad and not gathering.rows:
        raise DataError(f"{order.files[0]}: no completions in it")
    if bad and (order.bad_rows == "refuse" or (not fitting and (at_end or len(bad) >= HOPELESS))):
        told = "\n  ".join(f"{one.place}: {one.why}" for one in bad[:MOST_TOLD])
        more = f"\n  {len(bad)} rows do not fit." if len(bad) > 1 else ""
        some = "Mend them, or leave out --bad-rows refuse"
        remedy = some if fitting else other_format(first_columns(order.files), order.form)
        raise DataError(f"read as {order.form.name}:\n  {told}{more}\n  {remedy}")


def _written(work: Work, gathering: Gathering, order: ImportPlan, remarks: list[str]) -> Artifact:
    names = _write_shards(work, gathering)
    parts = [work.path / name for name in names]
    beside = [work.path / name.replace("part-", "origins-") for name in names]
    summary = {**summarize(read_scalars(parts)), **count_unknowns(UNKNOWNS, parts, beside)}
    if gathering.set_aside:
        work.write_table("set-aside.parquet", gathering.aside_table(), SetAside)
        summary["set_aside"] = len(gathering.set_aside)
    notes: dict[str, Any] = {"read_from": [str(file) for file in order.files]}
    if remarks:
        notes["remarks"] = remarks
    return work.finish(summary, notes=notes)


def _write_shards(work: Work, gathering: Gathering) -> list[str]:
    """Write what an earlier attempt did not, two files at a time: most of it is compression. Returns the rollouts' files."""
    names: list[str] = []

    def write(number: int, rollouts: pl.DataFrame, origins: pl.DataFrame) -> None:
        for name, frame, table in ((_part(number), rollouts, Rollouts), (f"origins-{number:05d}.parquet", origins, Origins)):
            if not work.has_table(name, table):
                work.write_table(name, frame, table)

    with ThreadPoolExecutor(WRITERS) as pool:
        under_way: deque[Future[None]] = deque()
        for number, (rollouts, origins) in enumerate(gathering.shards()):
            names.append(_part(number))
            under_way.append(pool.submit(write, number, rollouts, origins))
            if len(under_way) > WRITERS:
                under_way.popleft().result()
        for one in under_way:
            one.result()
    return names


def _part(number: int) -> str:
    return f"part-{number:05d}.parquet"
