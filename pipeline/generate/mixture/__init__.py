"""MixedWith decoding: every token from the normalized product of two models' distributions."""
