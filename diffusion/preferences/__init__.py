"""Preferences: files of pairs of images, streamed, split by the hash of the prompt."""
