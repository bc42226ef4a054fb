"""Real scans in: from folders of DICOM, volumes, AIIB23 or OSIC to a checked dataroot (see
docs/preparing.md).

`sources` finds what there is (`headers`, `series`, `choice` for DICOM), `register` gives case ids,
`case` makes one case (`pixels`, `masks`, `quality`), `jobs` does so in parallel, `join` adds the
table, `dataroot` and `report` write the rest; `run` is the whole way.
"""
