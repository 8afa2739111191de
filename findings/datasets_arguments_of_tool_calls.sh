#!/usr/bin/env bash
# datasets 5.2.0: Dataset.from_list gives every call of a tool the arguments of all others, as null.
#
# Expected: chats are the same whether they come from a list in memory or from the same rows in a JSONL file.
# Seen: load_dataset("json") keeps each call's arguments (a Json column). Dataset.from_list makes one object of all names, and so
# does Parquet written from it: a call of add(a, b) comes back with text=None, a call of find(text) with a=None and b=None.
# A chat template that writes arguments with tojson then writes those nulls, and a model is trained on calls that nobody made.
#
# Status 0 while that is so, 1 once it is not.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1
cd "$place"
HF_HOME="$place/cache" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$place/venv/bin/python" - <<'PROGRAM'
import json
import sys
from pathlib import Path

import datasets
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset

ASKED = [("add", {"a": 1, "b": 2}), ("find", {"text": "x"})]


def row(name, arguments):
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}


def arguments(rows):
    return [one["messages"][0]["tool_calls"][0]["function"]["arguments"] for one in rows]


rows = [row(*asked) for asked in ASKED]
Path("rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
of_file = arguments(load_dataset("json", data_files="rows.jsonl", split="train"))
of_list = arguments(Dataset.from_list(rows))
Dataset.from_list(rows).to_parquet("rows.parquet")
of_parquet = arguments(pq.read_table("rows.parquet").to_pylist())
print(f"datasets {datasets.__version__}")
for name, found in (("load_dataset('json')", of_file), ("Dataset.from_list", of_list), ("its Parquet", of_parquet)):
    print(f"{name}: {found}")
merged = [{"a": 1, "b": 2, "text": None}, {"a": None, "b": None, "text": "x"}]
sys.exit(0 if of_file == [asked[1] for asked in ASKED] and of_list == of_parquet == merged else 1)
PROGRAM
