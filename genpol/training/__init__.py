"""A run of `genpol train`: its session, evaluations, record, folder, curves and report."""
