"""Checks of volumes: intensities, masks, cases and cohorts."""
