"""Prompts: files and generators, streamed, split by hash, in a stateless order."""
