from pipeline.run.process import serve
from pipeline.shape.stage import shape

if __name__ == "__main__":
    serve(shape)
