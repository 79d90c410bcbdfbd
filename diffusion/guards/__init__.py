"""Against over-optimisation: how far a policy went, how alike its images are, and what to do."""
