"""diagonal_scan, as RG-LRU and as Mamba: right, of one set of bits."""

from typing import ClassVar

import jax.numpy as jnp
import pytest

from sparse_prefix_jax.kernels.diagonal_scan import diagonal_scan
from tests.kernels import operations
from tests.kernels.packing import Job, chunks_of
from tests.kernels.step_suite import StepSuite
from tests.kernels.suite import CoreSuite, InPlaceSuite, PackedSuite

PLAIN = operations.diagonal_scan_at()
SELECTIVE = operations.selective_scan_at()


class TestDiagonalScan(PackedSuite):
  operation = PLAIN


class TestDiagonalScanOfBfloat16(PackedSuite):
  operation = operations.diagonal_scan_at(dtype="bfloat16", chunk=16)


class TestSelectiveScan(PackedSuite):
  operation = SELECTIVE


class TestSelectiveScanOfBfloat16(PackedSuite):
  operation = operations.selective_scan_at(dtype="bfloat16", chunk=16)


class TestDiagonalScanPool(InPlaceSuite):
  operation = PLAIN


class TestDiagonalScanStep(StepSuite):
  operation = PLAIN


class TestSelectiveScanStep(StepSuite):
  operation = SELECTIVE


class TestDiagonalScanCore(CoreSuite):
  operation = PLAIN
  choices: ClassVar = {"decay": "mixed"}


class TestSelectiveScanCore(CoreSuite):
  operation = SELECTIVE
  choices: ClassVar = {"decay": "mixed"}


def test_half_of_the_selective_form_is_refused():
  x, rate = jnp.ones((1, 4, 2)), jnp.ones((2, 3))
  chunks = chunks_of([Job(4)], 1, 4)
  with pytest.raises(ValueError, match=r"together or none.*\['rate'\]"):
    diagonal_scan(x, -x, jnp.zeros((1, 2, 3)), chunks, rate=rate)


def test_a_pool_of_the_other_form_is_refused():
  x, chunks = jnp.ones((1, 4, 2)), chunks_of([Job(4)], 1, 4)
  with pytest.raises(ValueError, match="2 axes without rate, b and c"):
    diagonal_scan(x, -x, jnp.zeros((1, 2, 3)), chunks)
