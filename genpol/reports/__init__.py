"""Pages, picture grids, films and statistics, for whatever is reported."""
