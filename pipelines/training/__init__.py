"""Training of a run: its data, parts, validation, start from another run, and end."""
