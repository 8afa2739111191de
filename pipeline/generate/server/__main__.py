from functools import partial

from pipeline.generate.server.engine import Servers
from pipeline.generate.stage import generate
from pipeline.run.process import serve

if __name__ == "__main__":
    serve(partial(generate, live=Servers()), preload=("transformers",))
