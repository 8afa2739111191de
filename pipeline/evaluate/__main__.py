from pipeline.evaluate.stage import evaluate
from pipeline.run.process import each, serve

if __name__ == "__main__":
    serve(each(evaluate))
