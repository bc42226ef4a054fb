"""Find where a scan lies outside the spread of volumes generated from its mask and row.

A second look for research, not a diagnosis. OUT/index.html shows every scan with its strongest
regions outlined and named. The map is calibrated on scans without findings (--clean), and its rate
of false alarms there is reported.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.anomaly_options import AnomalyCommand
from options.parser import parse_command
from util.cli import run_command


def main() -> None:
    """Parse the command line and find anomalies."""
    options = parse_command(AnomalyCommand, (__doc__ or "").splitlines()[0])
    # Slow to import: --help and mistakes in the command line are answered without it.
    from pipelines.anomaly.run import find_anomalies

    find_anomalies(options)


if __name__ == "__main__":
    run_command(main)
