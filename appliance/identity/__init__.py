"""Who is calling: API keys and the verified principal."""
