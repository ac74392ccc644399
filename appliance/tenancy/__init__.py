"""Tenants and what is theirs: uploads, voices, consents, plans."""
