"""What a directory says of its model, before any weight is read."""

import os
import pathlib
import warnings
from typing import Any, NamedTuple

from sparse_prefix_jax.kinds import path_of
from sparse_prefix_jax.layers import Numerics
from sparse_prefix_jax.models.checkpoint.files import stored_tensors
from sparse_prefix_jax.models.checkpoint.json_object import read_json_object
from sparse_prefix_jax.models.checkpoint.quantization import (
  Quantization,
  read_quantization,
)
from sparse_prefix_jax.models.config import ModelConfig, check_fields
from sparse_prefix_jax.models.families import Family, Fields, family_of
from sparse_prefix_jax.models.families.harmless import HARMLESS_KEYS

_TIED = "tie_word_embeddings"
# Half floats fit into float32 exactly, and into bfloat16 not.
_HELD = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float32"}
_HELD_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float32"}


class Description(NamedTuple):
  """All that config.json says.

  Attributes:
    config: The configuration of the model.
    family: The names that its weights go by.
    quantization: How they are quantised; None if they are not.
  """

  config: ModelConfig
  family: Family
  quantization: Quantization | None


def read_config(directory: str | pathlib.Path, **changes: Any) -> ModelConfig:
  """Reads the `ModelConfig` of a directory, with some fields replaced.

  Fields are read from `text_config` where the file has one, as those of models
  that also see. Nothing that would change the logits is passed over: what is
  not computed here, and any key that is not known, is refused.

  `dtype` is that of the file ("float16" is held as float32; where config.json
  does not say, the header of the weights does), `max_length` the model's
  context, and `end_ids` those of generation_config.json or config.json; what is
  not in the vocabulary is left out of them, with a warning. Where the widths do
  not allow several rungs the ladder has one, and a warning says so.

  Args:
    directory: Holds config.json.
    **changes: Fields of `ModelConfig` or of `Numerics` to replace;
      `dtype="auto"` leaves it to the file. They do not excuse what the file
      holds, which is checked first.

  Returns:
    A frozen configuration.

  Raises:
    FileNotFoundError: If there is no config.json.
    ValueError: If it asks for what this library does not compute, if a field is
      missing, of another type or out of its range (naming it and the file), or
      if a field to replace does not exist.

  Example:
    config = read_config("Qwen3.5-0.8B", ladder=(4,))
  """
  return describe(as_folder(directory), changes).config


def as_folder(directory: str | os.PathLike[str]) -> pathlib.Path:
  """Returns a path; what names none is refused.

  Args:
    directory: What a user gave.

  Raises:
    ValueError: If it is no text and no path.
  """
  return path_of("directory", directory, "folder")


def describe(directory: pathlib.Path, changes: dict[str, Any]) -> Description:
  """Reads config.json, and refuses what nobody has read of it.

  Args:
    directory: Holds config.json.
    changes: Fields of `ModelConfig` or of `Numerics` to replace.

  Returns:
    What it says.

  Raises:
    FileNotFoundError: If there is no config.json.
    ValueError: As `read_config` does.
  """
  check_fields(changes)
  path = directory / "config.json"
  outer = Fields(read_json_object(path), str(path))
  text = outer.within("text_config") or outer
  family = family_of(text)
  if outer.get("model_type") is not None:
    family_of(outer)
  quantization = read_quantization(outer, text)
  config = _read(family, text)
  text.get(_TIED)
  # Of models that also see, the outer object decides; transformers reads no
  # other, and without it does what the family does.
  tied = outer.flag(_TIED, family.tied)
  fields: dict[str, Any] = {"tie_embeddings": tied}
  fields["dtype"] = _dtype(directory, outer, text, family, changes)
  end_ids = _end_ids(directory, outer, text)
  if "numerics" in changes:
    del fields["dtype"]
  harmless = HARMLESS_KEYS | family.harmless_keys
  text.refuse_unread(harmless)
  outer.refuse_unread(harmless, same=text.values)
  replaced = {k: v for k, v in changes.items() if (k, v) != ("dtype", "auto")}
  config = config.replace(**fields | replaced)
  if "end_ids" not in changes:
    end_ids = _of_vocabulary(path, end_ids, config.vocab_size)
    config = config.replace(end_ids=end_ids)
  config = _with_rungs(path, config, changes)
  return Description(config, family, quantization)


def _read(family: Family, text: Fields) -> ModelConfig:
  """Reads the model; the file is named where a layer refuses its sizes.

  Raises:
    ValueError: As the family does, and the layers that it asks for.
  """
  try:
    return family.read(text)
  except ValueError as error:
    if text.where in str(error):
      raise
    reason = f"{text.where} asks for what no layer computes: {error}"
    raise ValueError(reason) from None


def _dtype(
  directory: pathlib.Path,
  outer: Fields,
  text: Fields,
  family: Family,
  changes: dict[str, Any],
) -> str:
  """Reads the type that the model is to be held in.

  Raises:
    ValueError: If it is one that is not computed in, unless another is asked
      for.
  """
  keys = ("dtype", "torch_dtype")
  stated = [
    (fields, key)
    for fields in (text, outer)
    for key in keys
    if fields.get(key) is not None
  ]
  if changes.get("dtype", "auto") != "auto":
    return changes["dtype"]
  if not stated:
    return _stored_dtype(directory, family)
  fields, key = stated[0]
  value = fields.get(key)
  name = value.removeprefix("torch.") if isinstance(value, str) else ""
  if name not in _HELD:
    raise fields.error(key, f"it must be one of {', '.join(_HELD)}")
  return _HELD[name]


def _stored_dtype(directory: pathlib.Path, family: Family) -> str:
  """Finds the type of the embeddings; float32 where there are no weights."""
  if not any(directory.glob("*.safetensors")):
    return "float32"
  embedding = stored_tensors(directory).get(family.embedding)
  return _HELD_STORED.get(embedding.dtype if embedding else "", "float32")


def _end_ids(
  directory: pathlib.Path, outer: Fields, text: Fields
) -> tuple[int, ...]:
  """Reads the token ids that end a text.

  Those of generation_config.json come first: chat models end a turn with an id
  that config.json does not have.
  """
  path = directory / "generation_config.json"
  found = [fields.ids("eos_token_id") for fields in (text, outer)]
  if path.exists():
    generation = Fields(read_json_object(path), str(path))
    found.insert(0, generation.ids("eos_token_id"))
  return next((ids for ids in found if ids), ())


def _of_vocabulary(
  path: pathlib.Path, end_ids: tuple[int, ...], size: int
) -> tuple[int, ...]:
  """The ids that are tokens; a model with fewer rows draws no others."""
  known = tuple(token for token in end_ids if token < size)
  if known != end_ids:
    others = ", ".join(str(token) for token in end_ids if token >= size)
    warnings.warn(
      f"the model of {path} has vocab_size = {size}; end_ids leaves out what "
      f"is no token of it: {others}.",
      stacklevel=4,
    )
  return known


def _with_rungs(
  path: pathlib.Path, config: ModelConfig, changes: dict[str, Any]
) -> ModelConfig:
  """Gives the configuration several rungs, unless they would lose bits."""
  if "ladder" in changes or "numerics" in changes:
    return config
  try:
    return config.replace(ladder=Numerics.ladder)
  except ValueError as error:
    warnings.warn(
      f"the model of {path} takes a ladder of one rung, "
      f"{config.numerics.ladder}: {error}",
      stacklevel=4,
    )
    return config
