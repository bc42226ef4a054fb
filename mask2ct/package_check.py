"""Check that no file of the working folder hides a package of the project."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("util", "options", "data", "models", "pipelines")


def check_packages() -> None:
    """Raise `ImportError` where a name resolves to something else than the project's package."""
    for name in PACKAGES:
        file = _module_file(name)
        if file is not None and file != ROOT / name / "__init__.py":
            raise ImportError(
                f"{file} hides the package {name!r} of Mask2CT in {ROOT}. Rename that file or "
                "folder, or start Python in another folder."
            )


def _module_file(name: str) -> Path | None:
    """Return the file that `import name` runs or has run; None if there is none."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
    else:
        spec = find_spec(name)  # of a top-level name; nothing is imported
        file = spec.origin if spec is not None else None
    return Path(file).resolve() if file else None
