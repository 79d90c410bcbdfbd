"""One file per command: a frozen dataclass of its options, and `run(config)` that does the work.

A command stands in `table.py`. These files are imported to print help, so they import nothing heavy
at the top: torch, diffusers and the like are imported inside `run`.

Help, completion and errors read the options' dataclass (`described.py`). Beside the dataclass may
stand `GROUPS`, the order of help; `DEFAULT_TEXTS`, what help says of a default that is None; and
`defaults(given)`, where some options decide the defaults of others.
"""
