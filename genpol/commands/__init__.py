"""One file per command: a frozen dataclass of its options, and `run(config)` that does the work.

These files are imported to print help, so they import nothing heavy at the top: torch, diffusers
and the like are imported inside `run`.
"""
