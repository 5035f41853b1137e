"""One set of tests for every implementation of every step of one token.

A test class names an operation and inherits the rest, as those of `suite.py`:

    class TestGatedDeltaRuleStep(StepSuite):
      operation = operations.gated_delta_rule_at()
"""

import contextlib
from typing import ClassVar

import jax
import numpy as np

from sparse_prefix_jax.kernels.chunks import NONE, ZERO
from tests.kernels import reference
from tests.kernels.operations import Operation, compiled_step
from tests.kernels.packing import poisoned_pool
from tests.kernels.suite import SLOTS, same_bits


class StepSuite:
  """One token of several running sequences.

  Attributes:
    operation: What is tested, at which shape.
    implementation: A name or a config; None for the best that fits.
    tokens: How many are taken one after another.
    choices: Of the operation's tokens.
  """

  operation: Operation
  implementation = None
  tokens = 30
  choices: ClassVar = {}

  def around(self):
    """Entered around every step."""
    return contextlib.nullcontext()

  def after_each(self):
    """Called after every step."""

  def step(self, *arguments):
    """One compiled step."""
    run = compiled_step(self.operation.step, self.implementation)
    with self.around():
      out, pool = jax.tree.map(np.asarray, run(*arguments))
    self.after_each()
    return out, pool

  def pool(self):
    """Slots of NaN and of -0.0, but for random states in the first of them."""
    operation = self.operation
    pool = poisoned_pool((SLOTS, *operation.slot), operation.pool_dtype)
    for slot in range(6):
      pool[slot] = operation.initial_state(slot)
    return pool

  def test_steps_equal_the_recurrence(self):
    operation, t = self.operation, self.tokens
    inputs = [operation.tokens(i, t, **self.choices) for i in range(3)]
    stacked = [np.stack(x) for x in zip(*inputs, strict=True)]
    pool = after = self.pool()
    read, write = np.array([ZERO, 4, 5]), np.array([299, 7, 5])
    outs = []
    for i in range(t):
      out, after = self.step(*(x[:, i] for x in stacked), after, read, write)
      outs.append(out)
      read = write
    starts = np.zeros(operation.slot), pool[4], pool[5]
    for row, before in enumerate(starts):
      expected, states = operation.reference(inputs[row], before)
      error = reference.relative_error(np.stack(outs)[:, row], expected)
      assert error <= 1e-5
      error = reference.relative_error(after[write[row]], states[-1])
      assert error <= 1e-5
    changed = [s for s in range(SLOTS) if not same_bits(after[s], pool[s])]
    assert changed == [5, 7, 299]

  def test_a_step_has_the_same_bits_in_any_row(self):
    inputs = [x[:4] for x in self.operation.tokens(0, 4)]
    pool, read = self.pool(), np.arange(4)
    out, after = self.step(*inputs, pool, read, read + 10)
    order = np.array([2, 0, 3, 1])
    write = np.array([20, 21, NONE, 23])
    moved = [x[order] for x in inputs]
    again, later = self.step(*moved, pool, read[order], write)
    assert same_bits(again, out[order])
    for slot, row in ((20, 2), (21, 0), (23, 1)):
      assert same_bits(later[slot], after[row + 10])
    changed = [s for s in range(SLOTS) if not same_bits(later[s], pool[s])]
    assert changed == [20, 21, 23]


class KernelStepSuite(StepSuite):
  """What a kernel promises beyond that: rows do not see one another at all."""

  def test_any_number_of_rows_has_the_same_bits(self):
    inputs = self.operation.tokens(0, 5, **self.choices)
    pool, read = self.pool(), np.arange(5)
    out, after = self.step(*inputs, pool, read, read + 10)
    for b in (1, 2):
      rows = slice(3, 3 + b)
      few = [x[rows] for x in inputs]
      again, later = self.step(*few, pool, read[rows], read[rows])
      assert same_bits(again, out[rows])
      assert same_bits(later[rows], after[13 : 13 + b])

  def test_a_token_of_nan_stays_in_its_row(self):
    inputs = [np.copy(x) for x in self.operation.tokens(0, 3)]
    pool, slots = self.pool(), np.arange(3)
    out, after = self.step(*inputs, pool, slots, slots)
    for x in inputs:
      x[1] = np.nan
    again, later = self.step(*inputs, pool, slots, slots)
    assert np.isnan(again[1]).all() and np.isnan(later[1]).any()
    for row in (0, 2):
      assert same_bits(again[row], out[row])
      assert same_bits(later[row], after[row])


class DecayingStepSuite(KernelStepSuite):
  """The same of a state that decays, and may be told to forget."""

  choices: ClassVar = {"decay": "mixed"}

  def test_a_reset_forgets_whatever_a_slot_holds(self):
    inputs = self.operation.tokens(0, 3, decay=-np.inf)
    pool = self.pool()
    pool[0], pool[1] = np.nan, np.inf
    inputs = [np.stack([x[0]] * 3) for x in inputs]
    read, write = np.array([0, 1, ZERO]), np.array([10, 1, 12])
    out, after = self.step(*inputs, pool, read, write)
    assert np.isfinite(out).all()
    for row in (0, 1):
      assert same_bits(out[row], out[2])
      assert same_bits(after[write[row]], after[12])
