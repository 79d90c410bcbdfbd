"""Our own expressive policies: diffusion, flow and Gaussian heads over action chunks."""
