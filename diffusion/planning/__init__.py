"""What a run will need before its weights are read, by networks without weights."""
