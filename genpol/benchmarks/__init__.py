"""What is measured beside peers, for `genpol bench`."""
