"""Artifacts in the forms that other tools read: Hugging Face datasets and models, TRL's preference and SFT data."""
