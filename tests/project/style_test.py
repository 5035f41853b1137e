"""The limits of the project's style, as a ratchet.

A limit may be tightened when the code has become better than it, and is never
loosened to let code in. Lines of a function are counted without its docstring.
"""

import ast
import io
import re
import statistics
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.project import checkout

FUNCTION_MEDIAN = 10
FUNCTION_P90 = 40
FUNCTION_MAX = 80
KERNEL_BODY_MAX = 120  # functions of kernels/*/mosaic_*.py
FILE_MEDIAN = 180
FILE_MAX = 400
DOCSTRING_SHARE = 0.30

SUPPRESSION = re.compile(
  r"type:\s*ignore|\bnoqa\b|pyright:|pylint:|fmt:\s*(off|skip)|isort:\s*skip"
)
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
SKIPPING = {"skip", "skipif", "skipIf", "skipUnless", "skipTest"}
SKIPPING |= {"importorskip", "xfail", "expectedFailure"}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Function(NamedTuple):
  """One function of the library: where it is, its tree, its length."""

  where: str
  node: FunctionNode
  lines: int


def _docstring_lines(node: ast.AST) -> int:
  if not isinstance(node, Documented) or ast.get_docstring(node) is None:
    return 0
  first = node.body[0]
  return (first.end_lineno or first.lineno) - first.lineno + 1


def _length(node: FunctionNode) -> int:
  lines = (node.end_lineno or node.lineno) - node.lineno + 1
  return lines - _docstring_lines(node)


def _sources() -> dict[str, str]:
  return {
    str(path.relative_to(checkout.ROOT)): path.read_text(encoding="utf-8")
    for path in checkout.library_files()
  }


SOURCES = _sources()
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}
FUNCTIONS = [
  Function(f"{name}:{node.lineno} {node.name}", node, _length(node))
  for name, tree in TREES.items()
  for node in ast.walk(tree)
  if isinstance(node, FunctionNode)
]


def _percentile_90(values: list[int]) -> int:
  return sorted(values)[(9 * len(values)) // 10] if values else 0


def test_functions_are_short() -> None:
  lengths = [function.lines for function in FUNCTIONS]
  assert statistics.median(lengths) <= FUNCTION_MEDIAN
  assert _percentile_90(lengths) <= FUNCTION_P90


def test_no_function_is_too_long() -> None:
  too_long = [
    f"{function.where}: {function.lines} lines"
    for function in FUNCTIONS
    if function.lines
    > (KERNEL_BODY_MAX if "/mosaic_" in function.where else FUNCTION_MAX)
  ]
  assert not too_long, "\n".join(too_long)


def test_files_fit_in_the_head() -> None:
  lengths = {name: text.count("\n") for name, text in SOURCES.items()}
  too_long = {name: n for name, n in lengths.items() if n > FILE_MAX}
  assert not too_long
  assert statistics.median(lengths.values()) <= FILE_MEDIAN


def test_tests_and_benchmarks_fit_in_the_head_too() -> None:
  paths = [
    p
    for f in ("tests", "benchmarks")
    for p in (checkout.ROOT / f).rglob("*.py")
  ]
  lengths = {str(p): p.read_text(encoding="utf-8").count("\n") for p in paths}
  assert len(lengths) > 300
  assert not {name: n for name, n in lengths.items() if n > FILE_MAX}


def test_a_third_of_the_library_is_docstrings() -> None:
  documented = sum(
    _docstring_lines(node) for tree in TREES.values() for node in ast.walk(tree)
  )
  lines = sum(text.count("\n") for text in SOURCES.values())
  assert documented / lines >= DOCSTRING_SHARE, f"{documented} of {lines} lines"


def _unannotated(node: FunctionNode) -> Iterator[str]:
  arguments = node.args
  positional = [*arguments.posonlyargs, *arguments.args]
  if positional and positional[0].arg in ("self", "cls", "mcs"):
    positional = positional[1:]
  rest = [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
  for argument in [*positional, *arguments.kwonlyargs, *rest]:
    if argument.annotation is None:
      yield argument.arg
  if node.returns is None:
    yield "the result"


def test_every_argument_and_result_is_annotated() -> None:
  missing = [
    f"{function.where}: {name}"
    for function in FUNCTIONS
    for name in _unannotated(function.node)
  ]
  assert not missing, "\n".join(missing)


def _public_definitions(
  tree: ast.Module | ast.ClassDef,
) -> Iterator[FunctionNode | ast.ClassDef]:
  """Public functions and classes of a module, and their public methods."""
  for node in tree.body:
    if not isinstance(node, FunctionNode | ast.ClassDef):
      continue
    if node.name.startswith("_"):
      continue
    yield node
    if isinstance(node, ast.ClassDef):
      yield from _public_definitions(node)


def test_everything_public_has_a_docstring() -> None:
  missing = [
    f"{name}:{node.lineno} {node.name}"
    for name, tree in TREES.items()
    for node in _public_definitions(tree)
    if ast.get_docstring(node) is None
  ]
  missing += [n for n, tree in TREES.items() if ast.get_docstring(tree) is None]
  assert not missing, "\n".join(missing)


def _comments(source: str) -> Iterator[tuple[int, str]]:
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      yield token.start[0], token.string


@pytest.mark.parametrize("pattern", [SUPPRESSION, UNFINISHED])
def test_nothing_is_suppressed_or_left_for_later(
  pattern: re.Pattern[str],
) -> None:
  found = [
    f"{path.relative_to(checkout.ROOT)}:{line} {comment}"
    for path in [
      *checkout.library_files(),
      *checkout.python_files("tests", "benchmarks"),
    ]
    for line, comment in _comments(path.read_text(encoding="utf-8"))
    if pattern.search(comment)
  ]
  assert not found, "\n".join(found)


def test_nothing_is_a_stub() -> None:
  stubs = [
    f"{name}:{node.lineno}"
    for name, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.Name) and node.id == "NotImplementedError"
  ]
  stubs += [
    name
    for name, tree in TREES.items()
    if UNFINISHED.search(ast.get_docstring(tree) or "")
  ]
  assert not stubs, "\n".join(stubs)


def _checks(node: ast.AST) -> bool:
  """Whether a test can fail by what it says: an assert, or a call that does."""
  for child in ast.walk(node):
    if isinstance(child, ast.Assert):
      return True
    if isinstance(child, ast.Call):
      name = ast.unparse(child.func).rpartition(".")[2]
      if re.match(r"_?(assert|check|verify|raises|expect)", name):
        return True
  return False


def _asserts_nothing(node: ast.AST) -> bool:
  is_test = isinstance(node, FunctionNode) and node.name.startswith("test")
  return is_test and not _checks(node)


def test_every_test_asserts_and_none_is_skipped() -> None:
  faults = []
  for path in checkout.python_files("tests"):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    where = path.relative_to(checkout.ROOT)
    for node in ast.walk(tree):
      if _asserts_nothing(node):
        faults.append(f"{where}: {ast.unparse(node)[:60]} asserts nothing")
      if isinstance(node, ast.Attribute) and node.attr in SKIPPING:
        faults.append(f"{where}:{node.lineno} {node.attr}")
  assert not faults, "\n".join(faults)
