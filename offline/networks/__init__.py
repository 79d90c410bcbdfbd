"""Networks that critics, actors and models are made of: heads, encoders, stacks, bounds."""
