"""`genpol value`: a critic from a dataset of robots, or the value of an image pipeline."""
