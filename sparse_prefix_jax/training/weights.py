"""Trees of arrays in safetensors files, by name.

A name is the path of a leaf, so that a file is read by whoever has a tree of
the same form. Whole files appear at once: they are written beside their place
and renamed into it. They hold a checksum, so that a bit that a disk has turned
is noticed.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_prefix_jax import extras
from sparse_prefix_jax.kinds import brief, check_class, host_array, path_of
from sparse_prefix_jax.models.checkpoint.header import (
  damaged,
  read_header,
  read_metadata,
)
from sparse_prefix_jax.models.checkpoint.values import read_tensor
from sparse_prefix_jax.models.families.fields import shown
from sparse_prefix_jax.writable import replacing

_TYPES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": jnp.bfloat16,
  "I64": np.int64,
  "I32": np.int32,
  "U32": np.uint32,
  "BOOL": np.bool_,
}
_CHECKSUM = "checksum"  # the key of the metadata


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by their paths.

  Args:
    tree: Containers, modules, named tuples.

  Raises:
    ValueError: If two leaves have one name, as those of `{"a": {"b": 1}}` and
      `{"a.b": 1}` have: one of them would be lost.

  Example:
    >>> named_leaves({"a": [1, 2]})
    {'a.0': 1, 'a.1': 2}
  """
  named: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = _name(path)
    if name in named:
      raise ValueError(
        f"two leaves are called {name!r}; keys with dots make names like that "
        "of others."
      )
    named[name] = leaf
  return named


def _name(path: Any) -> str:
  """What a leaf is called in a file."""
  return jax.tree_util.keystr(path, simple=True, separator=".")


def save_arrays(
  path: str | os.PathLike[str], arrays: Mapping[str, Any]
) -> None:
  """Writes arrays by name; the file is the old or the new one, never a part.

  Args:
    path: The safetensors file.
    arrays: Arrays of any type that `load_arrays` reads.

  Raises:
    ValueError: If an array is of another type, or none, or a name no text.
    OSError: If it cannot be written, naming it; nothing of it is left.
    MissingExtraError: If the package `safetensors` is not installed.
  """
  library = extras.optional("safetensors.numpy", "train")
  path = path_of("path", path)
  check_class("arrays", arrays, Mapping, "names and arrays")
  held = {name: _written(name, array) for name, array in arrays.items()}
  with replacing(path) as file:
    file.write(library.save(held, {_CHECKSUM: _checksum(held)}))


def _written(name: Any, array: Any) -> np.ndarray:
  """An array as a file holds it, if it can be read again."""
  check_class("the name of an array", name, str)
  held = np.asarray(host_array(name, array), order="C")
  if held.dtype not in [np.dtype(kind) for kind in _TYPES.values()]:
    raise ValueError(f"{name} is {held.dtype}, which files do not hold.")
  return held


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads all arrays of a file, in the types that they were stored in.

  Args:
    path: The safetensors file.

  Raises:
    ValueError: If the file is damaged, or cannot be read.
  """
  path = path_of("path", path)
  # Not by the library: it writes bfloat16 and does not read it.
  tensors, content = read_header(path), path.read_bytes()
  for tensor in tensors:
    if tensor.dtype not in _TYPES:
      raise damaged(
        path, f"{shown(tensor.name)} is {tensor.dtype}, which is not written"
      )
  arrays = {
    t.name: np.frombuffer(
      content, _TYPES[t.dtype], math.prod(t.shape), t.start
    ).reshape(t.shape)
    for t in tensors
  }
  # Files of others have none.
  if read_metadata(path).get(_CHECKSUM) not in (None, _checksum(arrays)):
    raise damaged(path, "its arrays have another checksum than it says")
  return arrays


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
  """Of names, types, shapes and bytes, whatever the order."""
  digest = hashlib.blake2b(digest_size=16)
  for name, array in sorted(arrays.items()):
    digest.update(f"{name} {array.dtype.name} {array.shape} ".encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def filled(tree: Any, arrays: Mapping[str, np.ndarray], where: str) -> Any:
  """Returns a tree of the same form with the arrays of these names.

  Args:
    tree: What gives names, shapes and types.
    arrays: Arrays by name; others may be among them.
    where: What a sentence calls their file.

  Raises:
    ValueError: If one is missing, or has another shape or type.
  """

  def leaf(path: Any, like: Any) -> Any:
    return jnp.asarray(array_like(like, arrays, _name(path), where))

  return jax.tree_util.tree_map_with_path(leaf, tree)


def array_like(
  like: Any, arrays: Mapping[str, np.ndarray], name: str, where: str
) -> np.ndarray:
  """Returns the array of a name.

  Args:
    like: What has its shape and type.
    arrays: Arrays by name.
    name: Which one.
    where: What a sentence calls their file.

  Raises:
    ValueError: If it is missing, or has another shape or type, or `like` has
      none.
  """
  if not hasattr(like, "dtype"):
    raise ValueError(f"{name} is {brief(like)}; it must be an array.")
  found, form = arrays.get(name), (like.shape, like.dtype.name)
  if found is None or (found.shape, found.dtype.name) != form:
    held = "nothing" if found is None else f"{found.dtype}{found.shape}"
    raise ValueError(
      f"{where} holds {held} as {name}; it must be {form[1]}{form[0]}."
    )
  return found


def load_weights(path: str | os.PathLike[str], model: Any) -> Any:
  """Returns a model with the weights of a file; no extra is needed for it.

  Args:
    path: A safetensors file with the parameters by their paths, in any float
      type; names under `model.` are taken from a file that holds more.
    model: A model of the same configuration, whose values do not matter.

  Raises:
    ValueError: If the file is damaged, or its tensors are not those of the
      model, or that has none.
  """
  path, likes = path_of("path", path), named_leaves(model)
  if not likes or not all(hasattr(like, "dtype") for like in likes.values()):
    raise ValueError(f"model is {brief(model)}; it must hold arrays.")
  tensors = {tensor.name: tensor for tensor in read_header(path)}
  if _CHECKSUM in read_metadata(path):
    load_arrays(path)
  arrays = {}
  for name, like in likes.items():
    tensor = tensors.get(name, tensors.get(f"model.{name}"))
    if tensor is not None:
      arrays[name] = read_tensor(tensor, like.dtype)
  return filled(model, arrays, str(path))
