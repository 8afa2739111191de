from pipeline.run.process import serve
from pipeline.shape.mix.stage import mix

if __name__ == "__main__":
    serve(mix)
