from functools import partial

from pipeline.generate.live import LiveEngine
from pipeline.generate.stage import generate
from pipeline.run.process import serve

if __name__ == "__main__":
    serve(partial(generate, live=LiveEngine()), preload=("vllm.entrypoints.llm", "transformers"))
