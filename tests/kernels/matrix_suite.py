"""The recurrences on matrix states, all tested alike: one class, each of them.

    class TestOfWidth128(MatrixSuite, PackedSuite):
      sizes = (1, 2, 128, 128)

runs every test of the suite for every operation; `-k linear_attention` picks
one of them.
"""

import functools

import pytest

from tests.kernels import operations

SLOW = pytest.mark.slow_kernels
OPERATIONS = {
  "gated_delta_rule": operations.gated_delta_rule_at,
  "kimi_delta_attention": operations.kimi_delta_attention_at,
  "linear_attention": operations.linear_attention_at,
}

each_operation = pytest.mark.parametrize("name", OPERATIONS)


def usual_where(usual):
  """All operations, of which the others are with the slow tests.

  They share what surrounds the algebra of a chunk: where it costs seconds to
  test, one of them shows it in the usual run.
  """
  return [
    name if name in usual else pytest.param(name, marks=SLOW)
    for name in OPERATIONS
  ]


@functools.cache
def operation_at(name, sizes, dtype="float32", chunk=64):
  """The operation of that name: one object, whoever asks."""
  return OPERATIONS[name](sizes, dtype, chunk)


class MatrixSuite:
  """Before a suite among the bases: it tests each operation.

  Attributes:
    names: Of the operations.
    usual: Those that the usual run tests; the others are with the slow tests.
    sizes: h, hv, k, v.
    dtype: Of the inputs.
    chunk: Tokens of a chunk.
    cases: As the delta rules call them; None for all of each operation.
  """

  names = tuple(OPERATIONS)
  usual = names
  sizes: tuple[int, int, int, int]
  dtype = "float32"
  chunk = 64
  cases = None

  def pytest_generate_tests(self, metafunc):
    if "case" in metafunc.fixturenames:
      pairs = [
        pytest.param(name, case, marks=self.marks_of(name))
        for name in self.names
        for case in self.cases_of(name)
      ]
      metafunc.parametrize(("name", "case"), pairs)
    else:
      names = [pytest.param(x, marks=self.marks_of(x)) for x in self.names]
      metafunc.parametrize("name", names)

  def marks_of(self, name):
    """Where an operation is tested."""
    return () if name in self.usual else SLOW

  @pytest.fixture(autouse=True)
  def choose(self, name):
    """What is tested in this test."""
    self.operation = self.operation_of(name)

  def operation_of(self, name):
    """One of the operations, at the shape of the class."""
    return operation_at(name, self.sizes, self.dtype, self.chunk)

  def cases_of(self, name):
    """The cases of one operation; without beta, any strength is that of gates.

    What a delta rule calls repeated-0.0-1.0 is repeated-0.0-gates there.
    """
    known = self.operation_of(name).cases
    return [
      case if case in known else f"{case.rpartition('-')[0]}-gates"
      for case in self.cases or known
    ]
