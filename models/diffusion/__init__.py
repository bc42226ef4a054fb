"""Noise schedules, samplers, and the spaces in which diffusion runs."""
