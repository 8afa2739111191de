from pipeline.run.process import serve
from pipeline.score.stage import score

if __name__ == "__main__":
    serve(score)
