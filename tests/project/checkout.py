"""Where the files of the checkout are, each of them once."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
LINK = ROOT / "sparse_prefix_jax" / "kernels"


def python_files(*folders: str) -> list[pathlib.Path]:
  """The Python files below folders of the root; the link is not followed."""
  return sorted(
    path
    for folder in folders
    for path in (ROOT / folder).rglob("*.py")
    if LINK not in path.parents
  )


def library_files() -> list[pathlib.Path]:
  """The sources that ship, in files of sparse_prefix_jax/ and kernels/."""
  return python_files("sparse_prefix_jax", "kernels")


def module_name(path: pathlib.Path) -> str:
  """The name under which a file is imported: kernels/ ships inside."""
  parts = list(path.relative_to(ROOT).with_suffix("").parts)
  if parts[0] == "kernels":
    parts.insert(0, "sparse_prefix_jax")
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
