from pipeline.generate.cluster.nodes import look
from pipeline.run.process import serve

if __name__ == "__main__":
    serve(look)
