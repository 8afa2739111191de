"""What a pool and a worker say to each other: one JSON value a line, over two pipes.

    pool → worker   {"components": [{"grader", "args"}], "directory", "memory_mib"}     once
    worker → pool   {"ready": true, "notes"} or {"refused": why}                        once
    pool → worker   [completion, answer, prompt, {"finish_reason", "episode_reward"}]   for each item
    worker → pool   {"score": number} or {"error": why}, either with "remark"           for each component, in order;
                    a score null says that the component does not apply to the item

A grader that takes many completions at once has a worker of its own ("batches" in the first message):

    worker → pool   {"ready": true, "notes", "seconds_per_item"} or {"refused": why}    once
    pool → worker   [[completion, answer, prompt, group_id, sample_index], …]           for each batch
    worker → pool   {"scores": [[score, error, remark], …]}                             for each batch

A reply with "retire" ends the worker: "processes" after an item's last reply, because it left processes behind, and
"memory" in place of the item's remaining replies.
"""

REMARK_CHARACTERS = 400
"""Longest remark of a grader that takes one completion at a time; it keeps a reply within what a pipe takes in one write."""
