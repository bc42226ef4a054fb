"""Write the prompts of a clinical table for review; no scans are needed.

The file has the columns File Name, Prompt, Phrases and Left out (values that contradict others of
the row). Correct it and save it as DATAROOT/prompts.csv to use its prompts instead of the template.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.parser import parse_command
from options.prompt_options import PromptOptions
from util.cli import run_command


def main() -> None:
    """Parse the command line and write the table."""
    options = parse_command(PromptOptions, (__doc__ or "").splitlines()[0])
    # Slow to import: --help and mistakes in the command line are answered without it.
    from data.text.review import write_prompt_table

    write_prompt_table(options)


if __name__ == "__main__":
    run_command(main)
