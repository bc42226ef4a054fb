"""Earlier name of scripts/build_atlas.py."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    runpy.run_path(str(ROOT / "scripts" / "build_atlas.py"), run_name="__main__")
