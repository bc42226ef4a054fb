"""Pages that open from disk: their parts, the slice viewer, and pictures of slices."""
