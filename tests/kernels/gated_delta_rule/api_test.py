"""gated_delta_rule: right, of one set of bits, differentiable."""

from typing import ClassVar

import numpy as np
import pytest

from tests.kernels import operations
from tests.kernels.packing import Job
from tests.kernels.step_suite import StepSuite
from tests.kernels.suite import CoreSuite, InPlaceSuite, PackedSuite

FLOAT32 = operations.gated_delta_rule_at()


class TestGatedDeltaRule(PackedSuite):
  operation = FLOAT32

  def test_reset_forgets_the_state_and_nothing_else(self):
    inputs = self.operation.tokens(0, 100, decay=0.0)
    inputs[3][40] = -np.inf
    pool = self.pool()
    pool[0] = self.operation.initial_state(0)
    pool[1] = 1e3 * self.operation.initial_state(1)
    first, second = (
      self.call([Job(100, read=slot)], [inputs], pool)[0][0] for slot in (0, 1)
    )
    assert np.abs(first[:40] - second[:40]).max() > 1
    np.testing.assert_array_equal(first[40:], second[40:])


class TestGatedDeltaRuleOfBfloat16(PackedSuite):
  operation = operations.gated_delta_rule_at(dtype="bfloat16")
  cases = (
    *("random-gates-gates", "random-mixed-gates", "repeated-0.0-gates"),
    *("repeated--20.0-gates", "correlated-0.0-gates", "correlated-mixed-gates"),
  )


class TestGatedDeltaRuleOfOneHeadPerKey(PackedSuite):
  operation = operations.gated_delta_rule_at((2, 2, 16, 24), chunk=16)
  cases = ("random-gates-gates", "correlated-mixed-gates")


class TestGatedDeltaRulePool(InPlaceSuite):
  operation = FLOAT32


class TestGatedDeltaRuleStep(StepSuite):
  operation = FLOAT32


class TestGatedDeltaRuleCore(CoreSuite):
  operation = FLOAT32


class TestGatedDeltaRuleCoreOfRepeatedKeys(CoreSuite):
  operation = FLOAT32
  choices: ClassVar = {"keys": "repeated", "decay": "mixed"}

  @pytest.mark.slow  # Transformations do not look at keys.
  def test_gradients_pass_through_jit_and_checkpoint(self):
    self.assert_gradients_pass_through()
