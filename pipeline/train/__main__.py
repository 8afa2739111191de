from pipeline.run.process import serve
from pipeline.train.stage import train

if __name__ == "__main__":
    serve(train)
