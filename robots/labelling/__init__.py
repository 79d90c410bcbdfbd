"""One page in a browser on which a person says which episodes of a dataset succeeded."""
