"""Preparation of real scans: from DICOM, volumes, AIIB23 or OSIC to a checked dataroot.

See docs/howto/prepare_data.md. `sources` finds the scans (for DICOM `headers`, `slices`,
`acquisitions`, `series` and `choice`) and `register` gives case ids. `case` prepares one case
(`pixels`, `masks`, `quality`), and `jobs` does so in parallel. `join` adds the table, `dataroot`
and `report` write the rest. `run` is the whole way.
"""
