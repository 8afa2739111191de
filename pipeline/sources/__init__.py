"""Where models and prompts come from."""
