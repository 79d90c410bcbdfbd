"""The shipped world: captioned scenes of coloured shapes, and two independent checkers of them."""
