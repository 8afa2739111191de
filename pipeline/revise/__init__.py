"""revise: the policy's own completions in, an expert's corrections of them out, with weights of the tokens that they change."""
