"""Values of image pipelines: the reward that an unfinished image will have."""
