"""Steering: propose, edit, score, select; deadlines, tuning, paired episodes and their report."""
