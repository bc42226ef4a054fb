"""Text encoders, their registry, and the relevance of columns."""
