"""When a watermark's score says something; from the measurements in docs/provenance.md."""

# Between the two, and of clips shorter than this, nothing is said.
FOUND = 0.7
NOT_FOUND = 0.3
SHORTEST_SECONDS = 3.0
