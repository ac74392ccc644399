"""Signed messages to an address of a tenant's choice, set by an operator, when its jobs have ended."""
