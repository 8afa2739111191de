from functools import partial

from pipeline.generate.live import LiveEngine
from pipeline.generate.stage import generate
from pipeline.run.process import serve

if __name__ == "__main__":
    live = LiveEngine()
    serve(partial(generate, live=live), preload=("transformers",), begin=live.warm_up)
