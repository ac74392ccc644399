"""Equality with tortoise-tts 3.0.0, stage by stage."""
