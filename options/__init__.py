"""Every flag of every command, declared once as frozen dataclasses; `options` may import `util`."""
