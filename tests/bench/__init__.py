"""How fast the engine is, against tortoise-tts 3.0.0 and against what this machine can do: `make bench`."""
