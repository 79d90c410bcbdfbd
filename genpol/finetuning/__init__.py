"""A fine-tuning run: its session, exported weights, samples and report."""
