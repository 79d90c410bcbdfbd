"""Environments by name, what they observe and draw, and what is known of them."""
