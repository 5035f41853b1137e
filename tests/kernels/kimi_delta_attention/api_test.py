"""kimi_delta_attention: right, of one set of bits, differentiable."""

from tests.kernels import operations
from tests.kernels.step_suite import StepSuite
from tests.kernels.suite import CoreSuite, InPlaceSuite, PackedSuite

FLOAT32 = operations.kimi_delta_attention_at()


class TestKimiDeltaAttention(PackedSuite):
  operation = FLOAT32


class TestKimiDeltaAttentionOfBfloat16(PackedSuite):
  operation = operations.kimi_delta_attention_at(dtype="bfloat16")
  cases = ("random-gates-gates", "repeated-0.0-gates", "correlated-mixed-gates")


class TestKimiDeltaAttentionOfOneHeadPerKey(PackedSuite):
  operation = operations.kimi_delta_attention_at((2, 2, 16, 24), chunk=16)
  cases = ("random-gates-gates", "correlated-mixed-gates")


class TestKimiDeltaAttentionPool(InPlaceSuite):
  operation = FLOAT32


class TestKimiDeltaAttentionStep(StepSuite):
  operation = FLOAT32


class TestKimiDeltaAttentionCore(CoreSuite):
  operation = FLOAT32
