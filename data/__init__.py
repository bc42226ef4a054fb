"""The cohort: files, table, splits, volumes, prompts and patches.

This package may import `util` and `options`.

A dataset whose files follow the layout of the README (`img/`, `gtlung/`, `clinical.csv`) needs no
code. For another wording of its table, add one YAML file to `data/templates/`. For another source
of cases, write one file here with a function that returns a `data.cohort.Cohort`, and call it where
`load_cohort` is called. Everything behind (cache, patches, generation) only uses `Case` and
`Cohort`.
"""
