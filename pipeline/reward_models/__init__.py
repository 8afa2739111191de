"""Rewards learned from preferences: a language model with a head of one output, by Bradley and Terry's model of choice."""
