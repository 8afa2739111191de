"""Derivation: figures computed again from what they were computed from, in scratch that is removed again."""
