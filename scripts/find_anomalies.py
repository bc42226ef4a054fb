"""What is unusual in a scan: where it lies outside the spread of volumes generated from its own
mask and row.

A second look for research, no diagnosis. OUT/index.html shows every scan with its strongest regions
outlined and named; the map is calibrated on scans without findings (--clean), and its own rate of
false alarms there is told.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages


from options.anomaly_options import AnomalyCommand
from options.parser import parse
from pipelines.anomaly.run import find_anomalies
from util import cli

log = logging.getLogger(__name__)


def main() -> None:
    find_anomalies(parse(AnomalyCommand, (__doc__ or "").splitlines()[0]))


if __name__ == "__main__":
    cli.run_command(main)
