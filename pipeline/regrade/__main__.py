from pipeline.regrade.stage import grade
from pipeline.run.process import serve

if __name__ == "__main__":
    serve(grade)
