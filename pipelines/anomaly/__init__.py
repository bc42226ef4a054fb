"""What is unusual in a scan: its distance from what is generated from its own mask and row."""
