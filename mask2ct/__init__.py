"""Mask2CT as a library: load a trained run, generate volumes, compare two prompts.

run = mask2ct.load("checkpoints/run1")
volume = run.generate("lung.nii.gz", "Patient age: 60. SMOKING HISTORY is Ex smoker.", seed=0)
volume.save("generated.nii.gz")
"""

from mask2ct.package_check import check_packages

check_packages()

from mask2ct.run import Comparison, Run, load  # noqa: E402
from mask2ct.volume import Volume  # noqa: E402
from util import __version__  # noqa: E402

__all__ = ["Comparison", "Run", "Volume", "__version__", "load"]
