"""Kernels of a compiled program, counted in the text of its operations.

Every operation of the text that computes is one kernel on a GPU: a fusion, a
product of a library, a kernel of ours, a copy. Those in the body of a loop run
as often as the loop does, which the text tells where the compiler knew, and are
counted apart.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_OPERATION = re.compile(
  r"^\s+(?:ROOT )?%?([\w.\-]+) = "
  r"(\((?:[^()]|\([^()]*\))*\)|\S+) ([\w\-]+)\(([^)]*)\)(.*)$"
)
_ARRAY = re.compile(r"\b[a-z]+\d+\w*\[([\d,]*)\]")
_CALLED = re.compile(
  r"(body|condition|to_apply|calls|true_computation|false_computation|"
  r"branch_computations)=\{?(%?[\w.\-]+(?:, %[\w.\-]+)*)\}?"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_COPIED = ("dynamic_slice_fusion", "dynamic_update_slice_fusion")
"""Fusions that take or put one step of a loop, which a GPU does as a copy."""
_SCOPE = re.compile(r'op_name="([^"]*)"')
_METADATA = re.compile(r",? metadata=\{[^{}]*\}")
_NAME = re.compile(r"%[\w.\-]+")
_SUMS = {"reduce", "reduce-window", "dot"}
_FLOAT = re.compile(r"^\(?(?:f|bf)\d+")
_FREE = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
  *("after-all", "partition-id", "replica-id", "opt-barrier"),
}
_CALLS = {"while", "conditional", "call", "async-start"}
_OURS = 'custom_call_target="mosaic_gpu'
_PRODUCT = 'custom_call_target="__cublas'
_NO_KERNEL = ('custom_call_target="AllocateBuffer"',)


class Operation(NamedTuple):
  """One operation of a program.

  Attributes:
    name: Its own.
    shape: Of its result, as text.
    opcode: What it does.
    operands: Names of what it reads.
    told: What stands in its parentheses, such as the value of a constant.
    rest: All that follows: attributes, and the scope that it comes from.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  told: str
  rest: str


class Kernel(NamedTuple):
  """One kernel that a program launches.

  Attributes:
    operation: What launches it.
    reads: Numbers of each array that it reads.
    writes: Numbers of each array that it writes.
    after: Operations whose results it reads.
    looped: Whether a loop is around it.
    times: How often it runs, as far as the steps of loops are known.
  """

  operation: Operation
  reads: tuple[int, ...]
  writes: tuple[int, ...]
  after: tuple[Operation, ...]
  looped: bool
  times: int


def kernels(text: str) -> list[Kernel]:
  """The kernels that a program launches, in the order of its text.

  Args:
    text: What `as_text` of a compiled program returns.

  Raises:
    ValueError: A text without an entry.
  """
  entry, computations = _parsed(text)
  if entry is None:
    raise ValueError("the text of a compiled program has no entry")
  return list(_launched(computations, entry, False, 1))


def counts(found: Sequence[Kernel]) -> dict[str, int]:
  """How many kernels there are, how many of ours, and how many in loops."""
  return {
    "kernels": len(found),
    "own_kernels": sum(_OURS in x.operation.rest for x in found),
    "kernels_in_loops": sum(x.looped for x in found),
  }


def launches(found: Sequence[Kernel]) -> dict[str, int]:
  """How many kernels run, loops and all, and how many of these are copies."""
  return {
    "launches": sum(x.times for x in found),
    "copies": sum(x.times for x in found if _copies(x.operation)),
  }


def _copies(operation: Operation) -> bool:
  name = operation.name
  return operation.opcode == "copy" or any(x in name for x in _COPIED)


def passes(found: Sequence[Kernel], numbers: int) -> int:
  """How often arrays of at least so many numbers are read or written.

  Args:
    found: Kernels of a program.
    numbers: Those of the states of all rows. What is updated in place is read
      once and written once, whatever else is in its pool.
  """
  return sum(n >= numbers for x in found for n in (*x.reads, *x.writes))


def others(found: Sequence[Kernel], narrow: int) -> list[Kernel]:
  """Kernels of a decode step that are none of what every layer has to have.

  That is: wide products and the conversion or sum of their results, norms over
  the width of the model, the activation of SwiGLU and additions of residuals.

  Args:
    found: Kernels of the program.
    narrow: A product of fewer columns is not a wide one.
  """
  return [x for x in found if not _expected(x, narrow)]


def other_sums(text: str, whole: str, rows: int) -> int:
  """How many kernels that add up are none of those of another program.

  A sum has its bits by how it is computed: by the shapes and the layouts of
  what is read and written, by the operations fused with it, and by the sizes of
  tiles. So what must have the same bits in a program of fewer chunks has to be
  a kernel of the program of most of them, but for names.

  Args:
    text: Of the program of fewer chunks. All its sums of floats are looked at,
      and those products of a library whose left operand has `rows`: a wide one
      has as many as the program, and their bits do not hang on that.
    whole: Of the program of most chunks.
    rows: Those that what must not see their number takes at once.
  """
  known = set(_sums(whole, rows))
  return sum(form not in known for form in _sums(text, rows))


def _sums(text: str, rows: int) -> list[str]:
  """The forms of all kernels that add up, products of so many rows alone."""
  computations = _parsed(text)[1]
  read = {
    x.name: x for inside in computations.values() for x in inside.values()
  }
  forms = []
  for operation in (x.operation for x in kernels(text)):
    if _PRODUCT in operation.rest:
      added = _arrays(read[operation.operands[0]].shape)[0][0] == rows
    else:
      parts = (computations.get(x, {}).values() for x in _called(operation))
      added = any(_adds(x) for x in (operation, *itertools.chain(*parts)))
    if added:
      shapes = ", ".join(read[x].shape for x in operation.operands)
      forms.append(f"{shapes} {_form(operation, computations)}")
  return forms


def _adds(operation: Operation) -> bool:
  """Whether it adds up in floating point, whose order is in the bits."""
  return operation.opcode in _SUMS and bool(_FLOAT.match(operation.shape))


def _form(
  operation: Operation, computations: Mapping[str, Mapping[str, Operation]]
) -> str:
  """What an operation computes, inner ones and all, whatever they are named."""
  numbers: dict[str, int] = {}

  def numbered(found: re.Match[str]) -> str:
    return f"%{numbers.setdefault(found[0], len(numbers))}"

  return _NAME.sub(numbered, "\n".join(_lines(operation, computations)))


def _lines(
  operation: Operation, computations: Mapping[str, Mapping[str, Operation]]
) -> Iterator[str]:
  """An operation as a line of text, and before it those that it calls."""
  for called in _called(operation):
    for inner in computations.get(called, {}).values():
      yield from _lines(inner, computations)
  _, shape, opcode, _, told, rest = operation
  yield f"%{operation.name} = {shape} {opcode}({told}){_METADATA.sub('', rest)}"


def _expected(kernel: Kernel, narrow: int) -> bool:
  of, scopes = kernel.operation, _scope(kernel.operation).split("/")
  ours = _OURS in of.rest and "projection" in scopes
  if ours or _PRODUCT in of.rest:
    first = _arrays(of.shape)[0]
    return first[-1] >= narrow
  if "activation" in scopes or "norms" in scopes:
    # Norms of a head stand in the scope too, but have an axis more.
    return "activation" in scopes or len(_arrays(of.shape)[0]) == 2
  # What reads more than a product, such as a gated norm, does more.
  after_product = [_PRODUCT in x.rest for x in kernel.after] == [True]
  converted = scopes[-1] == "convert_element_type" and after_product
  # Directly below the program stands what adds a branch to the residual.
  return converted or (scopes[-1] == "add" and len(scopes) == 2)


def _scope(operation: Operation) -> str:
  found = _SCOPE.search(operation.rest)
  return found[1] if found else ""


def _parsed(text: str) -> tuple[str | None, dict[str, dict[str, Operation]]]:
  """The name of the entry, and the operations of each computation by name."""
  computations: dict[str, dict[str, Operation]] = {}
  entry, current = None, None
  for line in text.splitlines():
    header, found = _COMPUTATION.match(line), _OPERATION.match(line)
    if header is not None:
      current = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
    elif found is not None and current is not None:
      operands = tuple(re.findall(r"%([\w.\-]+)", found[4]))
      name, shape, opcode, told, rest = found.groups()
      current[name] = Operation(name, shape, opcode, operands, told, rest)
  return entry, computations


def _launched(
  computations: Mapping[str, Mapping[str, Operation]],
  name: str,
  looped: bool,
  times: int,
) -> Iterator[Kernel]:
  """The kernels of a computation and of those that it calls."""
  known = computations.get(name, {})
  for operation in known.values():
    if operation.opcode in _CALLS:
      inside = looped or operation.opcode == "while"
      trips = _TRIPS.search(operation.rest)
      repeated = times * int(trips[1]) if trips else times
      for called in _called(operation):
        yield from _launched(computations, called, inside, repeated)
    elif not _is_free(operation):
      yield _kernel(operation, known, looped, times)


def _kernel(
  operation: Operation,
  known: Mapping[str, Operation],
  looped: bool,
  times: int,
) -> Kernel:
  read = [known[x] for x in operation.operands if x in known]
  numbers = [n for x in read for n in _numbers(x.shape)]
  # A member of a tuple is read, not the tuple.
  sources = [
    known.get(x.operands[0], x) if x.opcode == "get-tuple-element" else x
    for x in read
  ]
  writes = tuple(_numbers(operation.shape))
  after = tuple(sources)
  return Kernel(operation, tuple(numbers), writes, after, looped, times)


def _is_free(operation: Operation) -> bool:
  nothing = any(x in operation.rest for x in _NO_KERNEL)
  return (
    operation.opcode in _FREE or operation.opcode.endswith("-done") or nothing
  )


def _called(operation: Operation) -> Iterator[str]:
  for _, names in _CALLED.findall(operation.rest):
    yield from (x.strip().lstrip("%") for x in names.split(","))


def _arrays(shape: str) -> list[tuple[int, ...]]:
  """The sizes of the axes of each array of a shape, a scalar as one of 1."""
  return [
    tuple(map(int, axes.split(","))) if axes else (1,)
    for axes in _ARRAY.findall(shape)
  ]


def _numbers(shape: str) -> list[int]:
  return [math.prod(axes) for axes in _arrays(shape)]
