from pipeline.generate.stage import generate
from pipeline.process import serve

if __name__ == "__main__":
    serve(generate, preload=("vllm.entrypoints.llm", "transformers"))
