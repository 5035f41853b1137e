"""Which files of a directory are its weights, and what they hold."""

import pathlib
import re
from typing import Any

from sparse_prefix_jax.models.checkpoint.header import (
  StoredTensor,
  read_header,
)
from sparse_prefix_jax.models.checkpoint.json_object import read_json_object
from sparse_prefix_jax.models.families.fields import shown

_SUFFIX = ".safetensors"
_INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"(.*)-(\d{1,9})-of-(\d{1,9})\.safetensors")
# Causal models, models that also see, and what trainers wrap around both.
_PREFIX = re.compile(
  r"(?:(?:module|_orig_mod|base_model|model|language_model)\.)+"
)


def stored_tensors(directory: pathlib.Path) -> dict[str, StoredTensor]:
  """Finds every tensor of a directory, by its name without prefixes.

  An index decides which files are read. Without one all are, provided that
  shards are complete. Nothing is chosen silently: a file that the index does
  not name, or a tensor that two files hold, is refused.

  Args:
    directory: Holds one or more .safetensors files.

  Returns:
    Where each tensor lies. Only headers have been read.

  Raises:
    FileNotFoundError: If there are no weights, or a shard is missing.
    ValueError: If a file is damaged, stale, or contradicts the index.
  """
  files = _files(directory)
  index = _index(directory)
  if index is None:
    _check_shards(directory, [file.name for file in files])
  else:
    _check_named(directory, files, index)
  tensors: dict[str, StoredTensor] = {}
  for file in files:
    for tensor in read_header(file):
      if index is not None:
        _check_place(tensor, index.pop(tensor.name, None))
      _add(tensors, tensor)
  if index:
    name, file = next(iter(index.items()))
    raise ValueError(
      f"{directory / file} does not hold the tensor {shown(name)}, which the "
      "index names."
    )
  return tensors


def plain_name(name: str) -> str:
  """Removes what wrappers and trainers put before the name of a tensor.

  Example:
    >>> plain_name("base_model.model.model.layers.0.mlp.up_proj.weight")
    'layers.0.mlp.up_proj.weight'
    >>> plain_name("language_model.model.norm.weight")
    'norm.weight'
  """
  return _PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
  """Lists the files of weights by name, also those that are in the way."""
  try:
    names = sorted(path.name for path in directory.iterdir())
  except OSError as error:
    raise FileNotFoundError(f"{directory} is no folder.") from error
  files = [directory / name for name in names if name.endswith(_SUFFIX)]
  if not files:
    raise FileNotFoundError(f"{directory} holds no .safetensors file.")
  return files


def _index(directory: pathlib.Path) -> dict[str, str] | None:
  """Reads which file holds each tensor, where an index says so."""
  paths = sorted(directory.glob(f"*{_INDEX}"))
  if not paths:
    return None
  if len(paths) > 1:
    names = " and ".join(path.name for path in paths)
    raise ValueError(f"{directory} holds {names}; only one index can hold.")
  weight_map = read_json_object(paths[0]).get("weight_map")
  if not isinstance(weight_map, dict) or not all(
    isinstance(file, str) for file in weight_map.values()
  ):
    raise ValueError(
      f"weight_map in {paths[0]} is {shown(weight_map)}; it must be an object "
      "of names of files."
    )
  return weight_map


def _check_named(
  directory: pathlib.Path, files: list[pathlib.Path], index: dict[str, Any]
) -> None:
  """Refuses an index without its files, and files without the index."""
  needed, there = set(index.values()), {file.name for file in files}
  missing, stale = sorted(needed - there), sorted(there - needed)
  if missing:
    raise FileNotFoundError(
      f"{directory} lacks {shown(missing[0])}, which its index names."
    )
  if stale:
    raise ValueError(
      f"{directory / stale[0]} is not named by the index beside it; remove it "
      "if it is stale."
    )


def _check_shards(directory: pathlib.Path, names: list[str]) -> None:
  """Names the first shard that is missing where there is no index."""
  for name in names:
    shard = _SHARD.fullmatch(name)
    if shard is None:
      continue
    stem, digits, last = shard[1], len(shard[2]), shard[3]
    for number in range(1, int(last) + 1):
      other = f"{stem}-{number:0{digits}d}-of-{last}{_SUFFIX}"
      if other not in names:
        raise FileNotFoundError(f"{directory} lacks {other}.")


def _check_place(tensor: StoredTensor, file: str | None) -> None:
  """Refuses a tensor that the index places elsewhere, or nowhere."""
  if file == tensor.file.name:
    return
  place = "in no file" if file is None else f"in {shown(file)}"
  raise ValueError(
    f"{tensor.file} holds the tensor {shown(tensor.name)}, which the index "
    f"places {place}."
  )


def _add(tensors: dict[str, StoredTensor], tensor: StoredTensor) -> None:
  """Adds a tensor, and refuses a second one of its name."""
  name = plain_name(tensor.name)
  if name in tensors:
    first = tensors[name]
    raise ValueError(
      f"{first.file} holds the tensor {shown(first.name)} and {tensor.file} "
      f"holds {shown(tensor.name)}, which are the same; remove the stale one."
    )
  tensors[name] = tensor
