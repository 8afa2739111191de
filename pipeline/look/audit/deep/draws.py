"""Which prompts an iteration was given and with which seeds: both follow from the recipe."""

from __future__ import annotations

import polars as pl

from pipeline.environments.registry import rows_of_episode
from pipeline.generate.seeds import row_seed, select_prompts
from pipeline.look.audit.deep.rerun import refuse_other_version
from pipeline.look.audit.holdings import Held
from pipeline.look.audit.world import World
from schemas import Prompts, Rollouts

REMEDY = "Have it made anew by its run."


def check_draws(held: Held, world: World) -> bool:
    """Report completions whose prompt or seed is not the one that the recipe draws. Returns whether that could be told.

    Raises:
        CannotRerun: another version of the stage drew them.
    """
    recipe = held.recipe
    selection, parent = recipe.get("selection"), world.shelf.parent(held, "prompts")
    if not held.manifest.content.stage.startswith("generate/") or not isinstance(selection, dict) or parent is None:
        return False
    refuse_other_version(held)
    names = world.columns(parent, Prompts, {"prompt_id": pl.col("prompt_id")})
    columns = {name: pl.col(name) for name in ("prompt_id", "group_id", "sample_index", "seed")}
    rows = world.columns(held, Rollouts, columns)
    if names is None or rows is None:
        return False
    chosen = select_prompts(len(names), selection["prompts"], selection["iteration"] or 0, selection["seed"])
    wanted = names["prompt_id"].gather(chosen).to_list()
    files, spot = held.tables("rollouts"), held.spot(world.ledger)
    given = rows.group_by("group_id", maintain_order=True).first()["prompt_id"].to_list()
    if given != wanted:
        place = next((n for n, (a, b) in enumerate(zip(given, wanted, strict=False)) if a != b), min(len(given), len(wanted)))
        expected = f"{len(wanted)} prompts, number {place} is {wanted[place : place + 1]}"
        found = f"{len(given)} prompts, number {place} is {given[place : place + 1]}"
        spot.error("derivation", "prompts drawn", expected=expected, found=found, remedy=REMEDY, column="prompt_id")
    several = rows_of_episode(recipe)
    for row in rows.drop_nulls("seed").iter_rows(named=True):
        group = row["group_id"].rpartition("@")[0]
        seed = row_seed(selection["seed"], recipe["purpose"], selection["iteration"], group, row["sample_index"], several)
        if seed != row["seed"]:
            file = files[row["file"]].path
            held.spot(world.ledger, file).error(
                "derivation",
                "seed",
                expected="the seed that follows from the run's, the prompt and the sample",
                found=row["seed"],
                remedy=REMEDY,
                row=row["row"],
                column="seed",
            )
    return True
