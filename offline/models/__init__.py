"""World models: dynamics ensembles, their training, what they imagine, and VaGraM's weights."""
