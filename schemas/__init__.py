"""The tables that rollbook writes and the manifest that names them. Imports neither torch nor vLLM."""

import schemas.light  # noqa: F401 (before the tables, which import dataframely)
from schemas.comparison import Comparison, ComparisonTiming
from schemas.credits import Credits
from schemas.evaluation import Evaluation
from schemas.metrics import Metrics, Timing
from schemas.origins import Origins
from schemas.pairs import Pairs
from schemas.prompts import Prompts
from schemas.remarks import Remarks
from schemas.revisions import Revisions
from schemas.rollouts import Rollouts
from schemas.scores import Scores
from schemas.set_aside import SetAside
from schemas.shaped import Shaped
from schemas.table import Checked, Table
from schemas.turns import Turns

TABLES: dict[str, type[Table]] = {
    table.__name__.lower(): table
    for table in (
        *(Prompts, SetAside, Rollouts, Turns, Remarks, Origins, Revisions, Scores, Shaped, Credits, Pairs),
        *(Metrics, Timing, Evaluation, Comparison, ComparisonTiming),
    )
}

__all__ = [
    "TABLES",
    "Checked",
    "Comparison",
    "ComparisonTiming",
    "Credits",
    "Evaluation",
    "Metrics",
    "Origins",
    "Pairs",
    "Prompts",
    "Remarks",
    "Revisions",
    "Rollouts",
    "Scores",
    "SetAside",
    "Shaped",
    "Table",
    "Timing",
    "Turns",
]
