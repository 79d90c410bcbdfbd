"""Scripted operators, careful, sloppy or two-mode, and the demonstrations they leave."""
