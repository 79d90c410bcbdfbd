"""Checkpoints as users have them: what they say of themselves, and how they are read."""
