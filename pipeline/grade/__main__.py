from pipeline.grade.stage import grade
from pipeline.process import serve

if __name__ == "__main__":
    serve(grade)
