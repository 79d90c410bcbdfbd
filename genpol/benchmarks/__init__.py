"""The workloads of `genpol bench`, and the peers that they are compared with."""
