"""Checkpoints: weights that are whole and shaped like their parent's, a tokenizer that is the parent's, steps without a gap."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import polars as pl

from pipeline.look.audit.findings import Figure, Spot
from pipeline.look.audit.holdings import Held
from pipeline.look.audit.hygiene import training_figures
from pipeline.look.audit.rows import MAKE_ANEW, RowBatch, Rule, check_rows, check_rules
from pipeline.look.audit.tables.checks import Checks, Facts, joined
from pipeline.look.audit.weights import Tensors, tensors_of
from schemas import Metrics, Timing
from schemas.manifest import File
from schemas.table import Table

MEANS = ("kl_behavior", "entropy", "clip_fraction_positive", "clip_fraction_negative", "ess", "grad_norm")
"""Figures of the summary that are means over the steps of the last epoch."""
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
ADAPTER = "adapter"
"""Where a checkpoint trained by LoRA holds its adapter; the model is the merged one. As in train.adapters, which needs torch."""
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")


class CheckpointChecks(Checks):
    """Checks of a checkpoint artifact."""

    @property
    def _trained(self) -> bool:
        return self.held.manifest.content.stage.startswith("train/")

    def check_artifact(self) -> None:
        self._check_formats()
        self._check_imported()
        weights = self._weights(self.held, report=True)
        parent = self.world.shelf.parent(self.held, "policy")
        if parent is None or weights is None:
            return
        before = self._weights(parent, report=False)
        self.world.ledger.count("schema", "checkpoints compared with their parents", int(before is not None), 1)
        if before is not None:
            self._check_like(weights, before)
        for name in TOKENIZER:
            old, new = parent.file(name), self.held.file(name)
            if old is not None and (new is None or new.sha256 != old.sha256):
                found = "no such file" if new is None else "another file"
                said: dict[str, Any] = {"expected": f"the {name} of the checkpoint it was trained from", "found": found}
                self.spot(name).error("schema", "tokenizer", **said, remedy=MAKE_ANEW)

    def _check_formats(self) -> None:
        for file in self.held.files:
            if file.path.endswith(PICKLED):
                said = {"expected": "weights in safetensors files", "found": "a pickled file"}
                remedy = "Nothing reads it; unpickling runs what is in it. Delete it from the model and import that anew."
                self.spot(file.path).warning("schema", "pickle", **said, remedy=remedy)
            elif file.path.endswith(".py"):
                said = {"expected": "a model without code of its own", "found": "Python code"}
                remedy = "It runs only where trust_remote_code is set. Read it before."
                self.spot(file.path).note("schema", "code", **said, remedy=remedy)

    def _check_imported(self) -> None:
        """The recipe of an imported model is the hash of its files."""
        wanted = self.held.recipe.get("files")
        if not self.held.manifest.content.stage.startswith("import/") or not isinstance(wanted, dict):
            return
        there = {file.path: file.sha256 for file in self.held.manifest.content.files}
        for name in sorted(wanted.keys() | there.keys()):
            if wanted.get(name) != there.get(name):
                expected, found = wanted.get(name) or "no such file", there.get(name) or "no such file"
                self.spot(name).error("integrity", "imported", expected=expected, found=found, remedy=MAKE_ANEW)

    def _weights(self, held: Held, *, report: bool) -> Tensors | None:
        """Types and shapes of the model's tensors, without those of an adapter beside it; None if a file is damaged."""
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for file in held.files:
            if not file.path.endswith(".safetensors"):
                continue
            if not self.world.hashes.intact(held, file):
                return None
            tensors = self._tensors(held, file, report=report)
            if tensors is None:
                return None
            if not file.path.startswith(f"{ADAPTER}/"):
                found |= tensors
        return found or None

    def _tensors(self, held: Held, file: File, *, report: bool) -> Tensors | None:
        try:
            return tensors_of(file.bytes, partial(held.folder.start, file))
        except (ValueError, OSError, RecursionError) as error:
            if report:
                said = {"expected": "a safetensors file", "found": " ".join(str(error).split()), "remedy": MAKE_ANEW}
                self.spot(file.path).error("schema", "weights", **said)
            return None

    def _check_like(self, weights: Tensors, before: Tensors) -> None:
        """Names and shapes are the parent's. Types may differ: training keeps fp32, and an imported model need not."""
        for name in sorted(weights.keys() | before.keys()):
            old, new = before.get(name), weights.get(name)
            if (old and old[1]) != (new and new[1]):
                expected = f"{name} {list(old[1])}, as in its parent" if old else f"no {name}, as in its parent"
                found = f"{name} {list(new[1])}" if new else "no such tensor"
                self.spot().error("schema", "weights", expected=expected, found=found, remedy=MAKE_ANEW, column=name)

    def facts(self, table: type[Table]) -> dict[str, pl.Expr]:
        names = ("step", "epoch", "tokens", "ratio_q01", "ratio_q99", *MEANS, "logprob_difference_mean", "logprob_difference_max")
        return {**super().facts(table), **{name: pl.col(name) for name in (names if table is Metrics else ("step",))}}

    def figures(self, table: type[Table], rows: pl.DataFrame) -> Iterator[Figure]:
        if table is Metrics and self._trained:
            yield from training_figures(self.held, rows)

    def check_batch(self, batch: RowBatch, table: type[Table], spot: Spot) -> None:
        check_rows(batch, table, spot)
        if table is Metrics:
            remedy = "Training broke down: see the run's log."
            rules = [
                Rule(
                    check="finite",
                    broken=~pl.col(name).is_finite(),
                    expected="a finite number",
                    found=pl.col(name),
                    column=name,
                    remedy=remedy,
                )
                for name in ("loss", "grad_norm")
            ]
            check_rules(batch, rules, spot)

    def conclude(self, table: type[Table], facts: Facts) -> None:
        self.check_unique(table, facts)
        rows = joined(facts)
        if table not in (Metrics, Timing) or rows.is_empty():
            return
        gaps = rows.with_row_index("number").filter(pl.col("step") != pl.col("number"))
        if not gaps.is_empty():
            row = gaps.row(0, named=True)
            said: dict[str, Any] = {"row": row["row"], "column": "step", "count": len(gaps), "remedy": MAKE_ANEW}
            self.spot(row["file"]).error("schema", "steps", expected=f"step {row['number']}", found=f"step {row['step']}", **said)
        if not self._trained:
            return
        steps = self.held.summary.get("steps")
        if table is Timing:
            if len(rows) != steps:
                said = {"expected": f"{steps} steps", "found": f"{len(rows)} rows", "remedy": MAKE_ANEW}
                self.spot(rows["file"][0]).error("schema", "steps", **said)
            return
        last = rows.filter(pl.col("epoch") == pl.col("epoch").max())
        first = {name: rows[name][0] for name in ("logprob_difference_mean", "logprob_difference_max")}
        means = {name: last[name].mean() for name in MEANS}
        self.check_summary({"steps": len(rows), "tokens": int(rows["tokens"].sum()), **means, **first})
