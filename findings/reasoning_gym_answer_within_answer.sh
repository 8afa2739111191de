#!/usr/bin/env bash
# reasoning-gym 0.1.25, the scorer that data sets without one of their own share: a wrong answer that holds the right one is paid.
# Expected: a wrong number earns nothing.
# Seen: chain_sum gives -214 a score of 0.75 where 214 is right, and 2140 and 1214 as well: length of the reference by length of
#       the answer. A list of many numbers is paid too, by how little else it holds.
# Ends with 0 while it is so.
set -euo pipefail
python3 -m venv "$(mktemp -d)/venv" && cd "$(dirname "$_")"
venv/bin/pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25
venv/bin/python - <<'PYTHON'
import sys

from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS, create_dataset

score = create_dataset("chain_sum", seed=7, size=1).score_answer
found = {answer: score(answer, {"answer": "214"}) for answer in ("214", "-214", "2140", "1214", "213")}
shared = [name for name, (kind, _) in DATASETS.items() if kind.score_answer is ProceduralDataset.score_answer]
print("version 0.1.25, chain_sum, reference 214:", found)
print("data sets with the shared scorer:", len(shared), "of", len(DATASETS))
sys.exit(0 if found["-214"] == found["2140"] == found["1214"] == 0.75 and found["213"] == 0 else 1)
PYTHON
