"""Durable speech: a request is kept, spoken in its turn, and its one result waits for the caller."""
