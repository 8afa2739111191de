from pipeline.revise.stage import revise
from pipeline.run.process import each, serve
from pipeline.sources.tokenizer import leave_torch_out

if __name__ == "__main__":
    serve(each(revise), begin=leave_torch_out)  # a model that is asked has a process of its own
