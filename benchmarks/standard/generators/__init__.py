"""Ready-made generators of the standard benchmark, each a command that trains and generates."""
