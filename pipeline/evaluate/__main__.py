from pipeline.evaluate.stage import evaluate
from pipeline.process import serve

if __name__ == "__main__":
    serve(evaluate)
