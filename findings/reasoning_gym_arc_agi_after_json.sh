#!/usr/bin/env bash
# reasoning-gym 0.1.25, arc_agi and rearc: an item that went through JSON does not accept its own answer.
# Expected: items are plain data (question, answer, metadata), so a file of them scores as the items do: 1.0.
# Seen: 0.05. The scorer compares the parsed answer, a tuple of tuples, with metadata["output"], which JSON made lists.
# Ends with 0 while it is so.
set -euo pipefail
python3 -m venv "$(mktemp -d)/venv" && cd "$(dirname "$_")"
venv/bin/pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25
venv/bin/python - <<'PYTHON'
import json
import sys

import reasoning_gym

seen = {}
for name in ("arc_agi", "rearc"):
    dataset = reasoning_gym.create_dataset(name, seed=7, size=1)
    item = dataset[0]
    seen[name] = dataset.score_answer(item["answer"], item), dataset.score_answer(item["answer"], json.loads(json.dumps(item)))
print("version 0.1.25, the own answer before and after JSON:", seen)
sys.exit(0 if all(both == (1.0, 0.05) for both in seen.values()) else 1)
PYTHON
