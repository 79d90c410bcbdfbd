"""Episodes of any format, transitions of chunks, replay, and how batches are mixed from them."""
