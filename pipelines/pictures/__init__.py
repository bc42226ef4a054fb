"""Pictures to take away from a results folder."""
