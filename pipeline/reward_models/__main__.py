from pipeline.reward_models.stage import train_reward_model
from pipeline.run.process import each, serve

if __name__ == "__main__":
    serve(each(train_reward_model))
