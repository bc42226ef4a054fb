"""Earlier name of scripts/find_anomalies.py."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    runpy.run_path(str(ROOT / "scripts" / "find_anomalies.py"), run_name="__main__")
