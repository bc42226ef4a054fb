"""Export a trained run without any patient's data: a zip, a hub folder, a MONAI bundle, or ONNX."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.export_options import ExportOptions
from options.parser import parse_command
from util.cli import run_command


def main() -> None:
    """Parse the command line and export."""
    options = parse_command(ExportOptions, __doc__ or "")
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.sharing.export import export_run

    export_run(options)


if __name__ == "__main__":
    run_command(main)
