"""Published weights: fetched by pinned hash, verified, and turned into a bundle that the engine opens."""
