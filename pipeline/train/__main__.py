from pipeline.run.process import each, serve
from pipeline.train.stage import train

if __name__ == "__main__":
    serve(each(train))
