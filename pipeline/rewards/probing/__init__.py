"""What graders give to answers that should earn nothing, and to right ones however they are written.

rows        the prompts that are asked about: the reference, the answer in it, its worked solution
dresses     ways to write an answer down
kinds       kinds of answers, each a declared value: a new kind is one entry
probe       asks graders about all of them, and says which earn what they should not
first_look  the quick form of it, which `rollbook check` and `rollbook init` show
"""
