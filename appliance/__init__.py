"""Testudo: a hardened, self-hosted voice-cloning appliance."""
