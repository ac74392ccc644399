"""Who is calling: API keys, ID tokens, identity tokens, roles and the verified principal."""
