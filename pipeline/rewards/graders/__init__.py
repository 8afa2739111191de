"""The built-in graders, one a file; `pipeline.rewards.registry.BUILTINS` lists them.

The module `<name>` defines the function `<name>(completion, answer, prompt, *, <args>) -> float`, and may define

    check(**args)    raise UserError for args that no completion could be graded with; cheap, run by `rollbook check`
    prepare(**args)  import and build what grading needs; run once in a worker, outside the time limit
"""
