from pipeline.run.process import each, serve
from pipeline.shape.stage import shape

if __name__ == "__main__":
    serve(each(shape))
