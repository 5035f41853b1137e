"""Reads how a config.json describes rotary embeddings, old form and new."""

from typing import Any, NamedTuple

from sparse_prefix_jax.layers.rotary import RopeScaling, yarn_attention_factor
from sparse_prefix_jax.models.families.fields import Fields

_PLAIN = ("default", "mrope")
_SCALINGS = ("linear", "yarn")
# On text the three axes of mrope count alike, so that it is plain.
_HARMLESS = frozenset({"mrope_section", "mrope_interleaved"})
# Of a file that does not say, whose embedding is the same at any length.
_CONTEXT = 32768
_OBJECTS = ("rope_scaling", "rope_parameters")


class Rope(NamedTuple):
  """What attention needs to know.

  Attributes:
    width: Leading channels of a head that are rotated.
    theta: Base of the frequencies.
    scaling: How frequencies are scaled, or None.
    length: The longest sequence of the model in tokens.
  """

  width: int
  theta: float
  scaling: RopeScaling | None
  length: int


def read_rope(
  fields: Fields, head_width: int, partial: float, *, theta: float = 1e4
) -> Rope:
  """Reads the rotary embedding of a text configuration.

  Old files keep base and rotated share beside `rope_scaling`; new ones all of
  it in `rope_parameters`. A file may hold both objects where they mean the
  same; a number beside them holds where the object has none.

  Args:
    fields: The text configuration.
    head_width: Channels of a head.
    partial: The share of them that is rotated where the file does not say.
    theta: The base of the frequencies where it does not say.

  Returns:
    Width, base, scaling and context.

  Raises:
    ValueError: If a number is out of its range, if the two objects differ, or
      if the scaling is one that depends on the total length, or unknown.

  Example:
    >>> fields = Fields({"rope_theta": 1e7}, "config.json")
    >>> read_rope(fields, 256, 0.25)
    Rope(width=64, theta=10000000.0, scaling=None, length=32768)
  """
  context = None
  if fields.get("max_position_embeddings") is not None:
    context = fields.count("max_position_embeddings", most=2**30)
  theta = fields.number("rope_theta", theta, least=1.0, most=1e30)
  partial = fields.number(
    "partial_rotary_factor", partial, least=1e-3, most=1.0
  )
  outer = fields.get("original_max_position_embeddings")
  beside = {"rope_theta": theta, "partial_rotary_factor": partial}
  if outer is not None:
    beside["original_max_position_embeddings"] = outer
  found = [fields.within(key) for key in _OBJECTS]
  objects = [each for each in found if each is not None and each.values]
  read = [
    _read_object(each, beside, head_width, context)
    for each in objects or [Fields({}, fields.where)]
  ]
  if any(rope != read[0] for rope in read):
    raise ValueError(
      f"rope_scaling and rope_parameters in {fields.where} differ; only one of "
      "them can hold."
    )
  return read[0]


def read_whole_rope(
  fields: Fields, head_width: int, *, theta: float = 1e4
) -> Rope:
  """Reads a rotary embedding that families compute for whole heads only.

  Args:
    fields: The text configuration.
    head_width: Channels of a head.
    theta: The base of the frequencies where the file does not say.

  Returns:
    Width, base, scaling and context.

  Raises:
    ValueError: As `read_rope`, or if only a share of a head is rotated, which
      transformers would pass over.
  """
  rope = read_rope(fields, head_width, 1.0, theta=theta)
  if rope.width != head_width:
    raise ValueError(
      f"partial_rotary_factor in {fields.where} leaves {rope.width} channels "
      f"of {head_width}; this family rotates whole heads."
    )
  return rope


def _read_object(
  rope: Fields, beside: dict[str, Any], head_width: int, context: int | None
) -> Rope:
  """Reads one object, with what stands beside it for what it lacks."""
  stated = {k: v for k, v in rope.values.items() if v is not None}
  name = "original_max_position_embeddings"
  if name in stated and stated[name] != beside.get(name, stated[name]):
    raise rope.error(name, "another one stands beside it")
  rope = Fields(beside | stated, rope.where)
  kind = _kind(rope)
  theta = rope.number("rope_theta", least=1.0, most=1e30)
  partial = rope.number("partial_rotary_factor", least=1e-3, most=1.0)
  scaling = _scaling(rope, kind, theta, context)
  rope.get(name)
  rope.refuse_unread(_HARMLESS)
  length = context or _CONTEXT
  if scaling is not None and kind == "yarn":
    scaled = int(scaling.factor * scaling.original_length)
    length = max(context or 0, scaled)
  return Rope(int(head_width * partial), theta, scaling, min(length, 2**30))


def _kind(rope: Fields) -> str:
  """Reads the kind, which old files keep under `type`.

  Raises:
    ValueError: If it is unknown, or if the two names say different things.
  """
  kinds = []
  for key in ("rope_type", "type"):
    kind = rope.get(key)
    if kind is None:
      continue
    if kind in ("dynamic", "longrope"):
      raise rope.error(
        key,
        "an angle that depends on the total length has no fixed value at a "
        "position",
      )
    if kind not in (*_PLAIN, *_SCALINGS):
      known = ", ".join((*_PLAIN, *_SCALINGS))
      raise rope.error(key, f"it must be one of {known}")
    kinds.append("default" if kind in _PLAIN else kind)
  if len(set(kinds)) > 1:
    raise rope.error("rope_type", f"type is {kinds[1]!r}")
  return kinds[0] if kinds else "default"


def _scaling(
  rope: Fields, kind: str, theta: float, context: int | None
) -> RopeScaling | None:
  """Reads the numbers of a scaling; None for a plain embedding."""
  if kind == "default":
    return None
  if kind == "linear":
    factor = rope.number("factor", least=1e-3, most=1e6)
    return RopeScaling(kind="linear", factor=factor)
  if theta <= 1:
    raise rope.error("rope_theta", "with yarn it must be above 1")
  stated = ("original_max_position_embeddings", "factor")
  if context is None and None in map(rope.get, stated):
    raise ValueError(
      f"{rope.where} is yarn, which depends on max_position_embeddings, and "
      "the configuration has none."
    )
  original = rope.count("original_max_position_embeddings", context, most=2**30)
  stretched = context / original if context else None
  factor = rope.number("factor", stretched, least=1e-3, most=1e6)
  return RopeScaling(
    kind="yarn",
    factor=factor,
    original_length=original,
    attention_factor=_attention_factor(rope, factor),
    beta_fast=rope.number("beta_fast", 32.0, least=1e-6, most=1e6),
    beta_slow=rope.number("beta_slow", 1.0, least=1e-6, most=1e6),
    truncate=rope.flag("truncate", True),
  )


def _attention_factor(rope: Fields, factor: float) -> float:
  """Reads what cosines and sines are multiplied by, or derives it."""
  scales = [
    rope.number(key, 1.0, least=1e-3, most=1e2) if rope.get(key) else None
    for key in ("mscale", "mscale_all_dim")
  ]
  default = yarn_attention_factor(factor)
  if scales[0] is not None and scales[1] is not None:
    default = yarn_attention_factor(factor, scales[0])
    default /= yarn_attention_factor(factor, scales[1])
  return rope.number("attention_factor", default, least=1e-3, most=1e3)
