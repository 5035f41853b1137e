"""Two things never share a name: a word in one file means the same in another.

What is looked at are the public classes, functions and constants that modules
of the package and of kernels/ define at their top, not what they import.
"""

import ast
import collections
import itertools
import pathlib
from collections.abc import Iterator

from tests.project import checkout

# Names that stand for two things nevertheless, and why.
REASONS = {
  "block": "a placement, as the command line names it; buffers of a GPU kernel",
  "check_tokens": "the prompts of a request; the rows of a step's arrays",
  "scan": "three loops over chunks, named after `lax.scan`; modules go along",
  "shared_bytes": "memory that one program takes, by rows or by heads",
  "sizes": "of the tiles of one program, by rows or by heads",
  "unfit": "why a program by rows or by heads does not fit the shapes",
}
BACKENDS = {"xla", "mosaic_gpu", "mosaic_tpu"}


def _cell(path: pathlib.Path) -> tuple[str, str] | None:
  """The operation and the part of it that a file of kernels/ is.

  An operation is a folder with an api.py. Its api, its backends and its
  gradient are parts; what all operations share is a part for each backend, and
  one for the rest. None for a file of another folder.
  """
  parts = path.relative_to(checkout.ROOT).with_suffix("").parts
  if parts[0] != "kernels":
    return None
  if (path.parent / "api.py").exists():
    return parts[1], parts[2]
  return "", parts[1] if parts[1] in BACKENDS else ""


def _same_part(paths: list[pathlib.Path]) -> bool:
  """Whether files define the same part of different kernels, each once.

  `packed` of `gated_delta_rule/xla.py` is to that file what `packed` of
  `linear_attention/mosaic_gpu.py` is to that one: a dispatcher picks the file,
  and no file has two.
  """
  cells = [_cell(path) for path in paths]
  return None not in cells and len(set(cells)) == len(cells)


def _names(node: ast.stmt) -> list[str]:
  """What a statement at the top of a module defines."""
  if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
    return [node.name]
  targets: list[ast.expr] = []
  if isinstance(node, ast.Assign):
    targets = node.targets
  elif isinstance(node, ast.AnnAssign):
    targets = [node.target]
  parts = itertools.chain.from_iterable(map(ast.walk, targets))
  return [part.id for part in parts if isinstance(part, ast.Name)]


def _definitions() -> dict[str, list[pathlib.Path]]:
  """The files that define each public name."""
  found: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
  for path in checkout.library_files():
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in {name for node in tree.body for name in _names(node)}:
      if not name.startswith("_"):
        found[name].append(path)
  return found


def _shared() -> dict[str, list[str]]:
  """Names that stand for several things, and where."""
  return {
    name: [str(path.relative_to(checkout.ROOT)) for path in paths]
    for name, paths in _definitions().items()
    if len(paths) > 1 and not _same_part(paths)
  }


def test_two_things_never_share_a_name() -> None:
  shared = {name: at for name, at in _shared().items() if name not in REASONS}
  assert not shared, "\n".join(f"{n}: {at}" for n, at in sorted(shared.items()))


def test_no_reason_is_out_of_date() -> None:
  assert set(REASONS) <= set(_shared())


def test_what_is_shared_between_kernels_is_one_part_of_each() -> None:
  kernels = checkout.ROOT / "kernels"
  rows, heads = (kernels / "mosaic_gpu" / f"{n}.py" for n in ("rows", "heads"))
  delta = kernels / "gated_delta_rule"
  assert _same_part([delta / "xla.py", delta / "mosaic_gpu.py", rows])
  assert not _same_part([rows, heads])
  assert not _same_part([rows, checkout.ROOT / "sparse_prefix_jax" / "x.py"])


def _hidden(path: pathlib.Path) -> Iterator[str]:
  """Modules of a package that one of its own names hides."""
  inside = {file.stem for file in path.parent.glob("*.py")}
  inside |= {file.parent.name for file in path.parent.glob("*/__init__.py")}
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.ImportFrom):
      for alias in node.names:
        if (alias.asname or alias.name) in inside:
          yield f"{checkout.module_name(path)}.{alias.asname or alias.name}"


def test_no_package_hides_a_module_behind_a_function() -> None:
  packages = [p for p in checkout.library_files() if p.name == "__init__.py"]
  hidden = [name for path in packages for name in _hidden(path)]
  assert not hidden
