"""Tortoise in plain torch: text to tokens, codes, latents and samples. Knows nothing of the rest."""
