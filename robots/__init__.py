"""Environments, robot datasets, adapters for other people's policies, and serving."""
