"""The cohort: files, table, splits, volumes, prompts and patches; `data` may import `util` and
`options`.

To add a dataset, no code is needed where its files follow the layout of the README (`img/`,
`gtlung/`, `clinical.csv`). For another wording of its table, add one YAML file to
`data/templates/`. For another source of cases, write one file here with a function that returns a
`data.cohort.Cohort`, and call it where `train.py` and `test.py` call `load_cohort`; everything
behind (cache, patches, generation) only knows `Case` and `Cohort`.
"""
