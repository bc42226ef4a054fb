"""Two processes give what one gives."""

from __future__ import annotations

import pytest

from benchmarks import check_processes
from util.cli import UserError

pytestmark = pytest.mark.slow


def test_two_gloo_processes_equal_one() -> None:
    check_processes.main(["--steps", "2", "--batch_size", "2"])  # raises where they differ


def test_two_gloo_processes_equal_one_with_texture_and_place_at_the_output() -> None:
    check_processes.main(["--steps", "1", "--batch_size", "2", "--at_output"])


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(UserError, match="--batch_size is 3"):
        check_processes.main(["--batch_size", "3"])
