"""Earlier name of benchmarks/effects.py."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    runpy.run_path(str(ROOT / "benchmarks" / "effects.py"), run_name="__main__")
