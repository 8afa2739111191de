from pipeline.run.process import each, serve
from pipeline.score.stage import score

if __name__ == "__main__":
    serve(each(score))
