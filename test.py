"""Makes synthetic CT volumes with a trained run: masks and rows in, volumes, effects, metrics and a
page out.
"""

from __future__ import annotations

from options.parser import parse
from options.test_options import TestOptions
from pipelines.generation import generate_cohort, generate_from_mask
from util import cli
from util.cli import UserError


def main() -> None:
    options = parse(TestOptions, __doc__ or "")
    source = options.source
    if bool(source.mask) == bool(source.dataroot) or (source.mask and options.edit.edit_real):
        raise UserError(
            "Give either --dataroot, for a cohort (and for --edit_real), or --mask with --out, for "
            "one volume."
        )
    (generate_from_mask if source.mask else generate_cohort)(options)


if __name__ == "__main__":
    cli.run(main)
