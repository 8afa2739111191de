from pipeline.evaluate.stage import evaluate
from pipeline.run.process import serve

if __name__ == "__main__":
    serve(evaluate)
