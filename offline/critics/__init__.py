"""Critics: value functions, their losses and penalties, and how they are trained offline."""
