"""Readers and writers of robot datasets; each reader is an `offline.data.episodes.Episodes`."""
