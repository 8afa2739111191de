from pipeline.mix.stage import mix
from pipeline.process import serve

if __name__ == "__main__":
    serve(mix)
