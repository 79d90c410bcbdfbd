"""The offline-to-online RL backbone: data, critics, models, the loop, and the types they share."""
