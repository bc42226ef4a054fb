"""Clinical rows to prompts, and prompts with one attribute changed."""
