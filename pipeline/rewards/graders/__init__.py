"""The built-in graders, one a file; `pipeline.rewards.registry.BUILTINS` lists them.

The module `<name>` defines the function `<name>(completion, answer, prompt, *, <args>)`, which returns a number, or a
`pipeline.rewards.items.Score` where it has a remark beside it, and may define

    check(**args)    raise UserError for args that no completion could be graded with; cheap, run by `rollbook check`
    TOLD             names of keyword arguments that the worker sets and a config does not: finish_reason, episode_reward
    prepare(**args)  import and build what grading needs; run once in a worker, outside the time limit

A grader that takes many completions at once (`pipeline.rewards.registry.BATCHED`) is opened once, in a process of its own: the
function `<name>(*, <args>)` returns a `pipeline.rewards.batches.BatchGrader`. Beside `check`, its module has

    WORK                 args that decide no score, such as places and time limits: they are not in the recipe
    source(**args)       sha256 of the file or the model that it grades with, for the recipe
    environment(**args)  names of variables that its process needs
"""
