"""linear_attention: right, of one set of bits, differentiable."""

from tests.kernels import operations
from tests.kernels.step_suite import StepSuite
from tests.kernels.suite import CoreSuite, InPlaceSuite, PackedSuite

FLOAT32 = operations.linear_attention_at()


class TestLinearAttention(PackedSuite):
  operation = FLOAT32


class TestLinearAttentionOfBfloat16(PackedSuite):
  operation = operations.linear_attention_at(dtype="bfloat16")
  cases = ("random-gates-gates", "repeated-0.0-gates", "correlated-mixed-gates")


class TestLinearAttentionOfOneHeadPerKey(PackedSuite):
  operation = operations.linear_attention_at((2, 2, 16, 24), chunk=16)
  cases = ("random-gates-gates", "correlated-mixed-gates")


class TestLinearAttentionPool(InPlaceSuite):
  operation = FLOAT32


class TestLinearAttentionStep(StepSuite):
  operation = FLOAT32


class TestLinearAttentionCore(CoreSuite):
  operation = FLOAT32
