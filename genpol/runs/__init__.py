"""Run folders: configuration, metrics, checkpoints, random streams, and how a process behaves."""
