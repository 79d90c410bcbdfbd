"""Serving, recording, learning and swapping, all at once, in processes of their own."""
