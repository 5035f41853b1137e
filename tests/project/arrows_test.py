"""Who may import whom, read from the import statements."""

import ast
import dataclasses
import pathlib
import re
from collections.abc import Iterator

import pytest

from sparse_prefix_jax.cache.running import Running
from tests.project import checkout

PACKAGE = "sparse_prefix_jax"
CACHE = {"cache", "cache.store", "cache.index"}

# Direct imports. `array_typing` is the notation and may be used by everybody.
ARROWS: dict[str, set[str]] = {
  "array_typing": set(),
  # Texts such as "4GiB": whoever takes a capacity reads them the same way.
  "byte_sizes": {"kinds", "whole_numbers"},
  "extras": set(),  # packages that may be missing
  "kernels": set(),
  "kinds": set(),  # what else a user gives: refused by name
  "layers": {"kernels", "kinds"},
  "machine": set(),  # where a report was made
  "whole_numbers": {"kinds"},  # what is an integer, for who takes one of users
  "writable": set(),  # files of results
  # `kernels.chunks` is the vocabulary of a plan: sentinels, Chunks, Rows.
  "models": {"layers", "kernels", "kinds", "whole_numbers"},
  # What a store says is to be computed; integers and token ids.
  "runtime.segment": set(),
  "runtime": {"models", "layers", "kernels", "runtime.segment", "byte_sizes"}
  | {"kinds"},
  "placement": {"kinds", "whole_numbers"},
  "workloads": {"byte_sizes", "extras", "kinds", "whole_numbers", "writable"},
  # Losses and steps over `scan`; no cache, no pools.
  "training": {"models", "layers", "workloads", "extras", "writable"}
  | {"kernels", "kinds", "whole_numbers"},
  "cache.index": {"kinds", "placement"},
  "cache.store": {"cache.index", "placement", "runtime.segment"}
  | {"kinds", "whole_numbers"},
  "cache": {"models", "runtime", "runtime.segment", "placement", "byte_sizes"}
  | {"cache.store", "cache.index", "kinds"},
  "serving": {"models", "runtime", "runtime.segment", "kernels", "extras"}
  | {"byte_sizes", "kinds", "whole_numbers"}
  | CACHE,
  # Path independence tried on schedules: a user of everything that serves.
  "contract": {"models", "runtime", "runtime.segment", "placement", "serving"}
  | CACHE,
  # One file per command; what only one needs is imported late.
  "commands": {"evaluation", "placement", "workloads", "writable", "extras"}
  | {"kinds", "whole_numbers"},
  "evaluation": {"cache.store", "cache.index", "placement", "workloads"}
  | {"models", "byte_sizes", "extras", "kinds", "whole_numbers", "writable"},
}
# The one life of a request, without arrays: a bare store needs no device.
STORE = {"admission", "audit", "canonical", "counts", "request", "running"}
STORE |= {"expectations"}
STORE |= {"divided_capacity", "recent", "segments", "share_chooser", "store"}
STORE |= {"decoding", "resizing", "store_view", "swapping", "verbs", "waves"}
# They put the parts together, and nothing imports them.
COMPOSITION_ROOTS = {"__init__", "__main__", "demo", "contract"}

KERNELS_MAY_IMPORT = {"jax", "jaxlib", "jaxtyping", "numpy", "ml_dtypes"}
STANDARD = {"abc", "collections", "dataclasses", "enum", "functools"}
STANDARD |= {"itertools", "math", "operator", "types", "typing"}


def _unit(module: str) -> str:
  """The part of the package that a dotted module name belongs to."""
  parts = module.split(".")[1:]
  if not parts:
    return "__init__"
  if parts[:2] in (["cache", "index"], ["runtime", "segment"]):
    return ".".join(parts[:2])
  if parts[0] == "cache" and parts[1:] and parts[1] in STORE:
    return "cache.store"
  return parts[0]


def _module_exists(name: str) -> bool:
  path = checkout.ROOT.joinpath(*name.split("."))
  return path.is_dir() or path.with_suffix(".py").is_file()


def _absolute(node: ast.ImportFrom, path: pathlib.Path) -> str:
  """The module that a `from` statement names, without leading dots."""
  if node.level == 0:
    return node.module or ""
  package = checkout.module_name(path)
  if path.name != "__init__.py":
    package = package.rpartition(".")[0]
  for _ in range(node.level - 1):
    package = package.rpartition(".")[0]
  return f"{package}.{node.module}" if node.module else package


def _imports(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Line and module of every import; `from p import m` may name a module."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield node.lineno, alias.name
    elif isinstance(node, ast.ImportFrom):
      base = _absolute(node, path)
      for alias in node.names:
        inner = f"{base}.{alias.name}"
        ours = inner.startswith(PACKAGE) and _module_exists(inner)
        yield node.lineno, inner if ours else base


def _where(path: pathlib.Path, line: int) -> str:
  return f"{path.relative_to(checkout.ROOT)}:{line}"


def _edges() -> Iterator[tuple[str, str, str]]:
  """Place, unit and imported unit of every import inside the package."""
  for path in checkout.library_files():
    for line, module in _imports(path):
      if module.split(".")[0] == PACKAGE:
        yield (
          _where(path, line),
          _unit(checkout.module_name(path)),
          _unit(module),
        )


def test_every_part_is_known() -> None:
  parts = {_unit(checkout.module_name(p)) for p in checkout.library_files()}
  assert parts <= set(ARROWS) | COMPOSITION_ROOTS


def test_imports_follow_the_arrows() -> None:
  wrong = {
    f"{where}: {unit} imports {imported}"
    for where, unit, imported in _edges()
    if unit not in COMPOSITION_ROOTS
    and imported not in {unit, "array_typing"} | ARROWS.get(unit, set())
  }
  assert not wrong, "\n".join(sorted(wrong))


def test_the_arrows_have_no_cycle() -> None:
  left = dict(ARROWS)
  while left:
    free = [unit for unit, needs in left.items() if not needs & set(left)]
    assert free, f"a cycle among {sorted(left)}"
    for unit in free:
      del left[unit]


def _changes(tree: ast.Module) -> Iterator[tuple[int, str]]:
  """Line and name of every attribute, or item of one, that is set."""
  for node in ast.walk(tree):
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
      targets = [node.target]
    for target in targets:
      while isinstance(target, ast.Subscript | ast.Starred):
        target = target.value
      if isinstance(target, ast.Attribute):
        yield target.lineno, target.attr


# Whatever changes a sequence beside the store's own file.
PARTS = ("admission", "canonical", "decoding", "swapping")
# Fields of `Running` that other classes have as well.
NAMESAKES = {"pages", "claims", "features", "tokens", "length", "pin"}
NAMESAKES |= {"number", "expected_lost"}


def test_only_the_store_changes_a_running_sequence() -> None:
  """Its verbs, and the files that they alone call."""
  fields = {f.name for f in dataclasses.fields(Running)} - NAMESAKES
  allowed = {"store.py"} | {f"{name}.py" for name in PARTS}
  found = [
    f"{_where(path, line)}: {name}"
    for path in checkout.library_files()
    if not (path.parent.name == "cache" and path.name in allowed)
    for line, name in _changes(ast.parse(path.read_text(encoding="utf-8")))
    if name in fields
  ]
  assert not found, "\n".join(found)


@pytest.mark.parametrize("module", [*PARTS, "resizing"])
def test_parts_of_the_store_are_called_by_the_store_alone(module: str) -> None:
  name = f"{PACKAGE}.cache.{module}"
  users = {
    path.name
    for path in checkout.library_files()
    for _, imported in _imports(path)
    if imported == name
  }
  assert users & {"store.py", "store_view.py"}
  own = {"store.py", "store_view.py", "resizing.py"}
  assert users <= own | {f"{part}.py" for part in PARTS}


def test_only_the_store_changes_an_index() -> None:
  """Outside of `cache/index`, verbs of an index are called in its store."""
  verbs = {
    "grow",
    "reserve",
    "set_budget",
    "free",
    "pin",
    "unpin",
    "use",
    "claim",
    "unclaim",
  }
  verbs |= {"demote", "drop", "remember", "share", "forget", "clear"}
  verbs |= {"refuse"}
  pattern = re.compile(rf"\bindex\.({'|'.join(verbs)})\(")
  found = [
    f"{path.relative_to(checkout.ROOT)}"
    for path in checkout.library_files()
    if "cache/index" not in str(path)
    and pattern.search(path.read_text(encoding="utf-8"))
  ]
  store = [
    f"sparse_prefix_jax/cache/{name}.py"
    for name in (*PARTS, "resizing", "store")
  ]
  # The contract takes states and room away on purpose.
  contract = {"schedule", "traffic"}
  store += [f"sparse_prefix_jax/contract/{name}.py" for name in contract]
  assert set(found) <= {*store}


def test_kernels_need_jax_only() -> None:
  allowed = KERNELS_MAY_IMPORT | STANDARD | {PACKAGE}
  wrong = [
    f"{_where(path, line)}: {module}"
    for path in checkout.python_files("kernels")
    for line, module in _imports(path)
    if module.split(".")[0] not in allowed
  ]
  assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("forbidden", ["tests", "benchmarks", "kernels"])
def test_nothing_that_ships_imports(forbidden: str) -> None:
  found = [
    _where(path, line)
    for path in checkout.library_files()
    for line, module in _imports(path)
    if module.split(".")[0] == forbidden
  ]
  assert not found, f"{forbidden} imported by " + ", ".join(found)


def test_kernels_have_one_name() -> None:
  found = [
    _where(path, line)
    for path in checkout.python_files("tests", "benchmarks")
    for line, module in _imports(path)
    if module.split(".")[0] == "kernels"
  ]
  assert not found, "\n".join(found)
  assert not (checkout.ROOT / "kernels" / "__init__.py").exists()


def test_the_link_points_at_the_kernels() -> None:
  assert checkout.LINK.is_symlink()
  assert checkout.LINK.readlink() == pathlib.Path("../kernels")


def test_tests_mirror_the_folders() -> None:
  """`tests/a/b_test.py` tests `a/b.py`, or the folder `a/b`, of the library."""
  stray = []
  for path in checkout.python_files("tests"):
    relative = path.relative_to(checkout.ROOT / "tests")
    if path.name.endswith("_test.py") and relative.parts[0] != "project":
      folder = checkout.ROOT / PACKAGE
      if relative.parts[0] in ("benchmarks", "colab"):
        folder = checkout.ROOT
      if not (folder / relative.parent).is_dir():
        stray.append(str(relative))
  assert not stray, "\n".join(stray)


def test_the_placement_of_a_relative_import_is_read() -> None:
  path = checkout.ROOT / PACKAGE / "cache" / "x" / "x.py"
  node = ast.parse("from ..index import y").body[0]
  assert isinstance(node, ast.ImportFrom)
  assert _absolute(node, path) == f"{PACKAGE}.cache.index"
  assert _unit(_absolute(node, path)) == "cache.index"
