"""What most families share: how attention and feed-forward layers are named."""

from sparse_prefix_jax.layers import AttentionConfig, MLPConfig, SwiGLUConfig
from sparse_prefix_jax.models.families.family import Source, same
from sparse_prefix_jax.models.families.fields import Fields, shown

MOST_LAYERS = 1024
"""No model that is known has more."""
FACTORS = {"least": 1e-6, "most": 1e6}
"""The range of factors that are believed."""
EPS = {"least": 1e-30, "most": 1e3}
"""The range of what a norm adds to a mean square."""


def check_decoder(fields: Fields) -> None:
  """Refuses what would make another model than a decoder of text."""
  fields.only("is_encoder_decoder", False)
  fields.only("is_decoder", False, True)
  fields.only("add_cross_attention", False)
  fields.only("tie_encoder_decoder", False)


def head_width(fields: Fields) -> int:
  """Reads the width of a head of attention, or derives it."""
  width = fields.count("hidden_size")
  heads = fields.count("num_attention_heads")
  return fields.count("head_dim", max(1, width // heads))


def layer_kinds(fields: Fields, keys: tuple[str, ...]) -> list[str] | None:
  """Reads the kinds of the layers, under any of several keys.

  Args:
    fields: The text configuration.
    keys: Names that the list goes by; two of them may hold it if it is the
      same.

  Returns:
    The kinds, or None where no key holds any.

  Raises:
    ValueError: If two keys differ, or if there are not as many as
      `num_hidden_layers` says, or too many.
  """
  found = [(key, fields.texts(key)) for key in keys]
  given = [(key, kinds) for key, kinds in found if kinds is not None]
  if not given:
    return None
  key, kinds = given[0]
  for other, others in given[1:]:
    if others != kinds:
      raise fields.error(key, f"{other} says something else")
  layers = fields.count("num_hidden_layers", max(1, len(kinds)))
  if layers != len(kinds) or layers > MOST_LAYERS:
    raise ValueError(
      f"{key} in {fields.where} names {len(kinds)} layers; it must name "
      f"num_hidden_layers = {layers}, at most {MOST_LAYERS}."
    )
  return kinds


def check_kinds(
  fields: Fields, key: str, kinds: list[str], known: tuple[str, ...]
) -> None:
  """Refuses layers of a kind that is not known.

  Args:
    fields: The text configuration.
    key: Where the kinds stand.
    kinds: What was read.
    known: What may stand there.

  Raises:
    ValueError: Naming the first that is not.
  """
  for kind in kinds:
    if kind not in known:
      raise ValueError(
        f"{key} in {fields.where} holds {shown(kind)}; it may hold "
        f"{', '.join(known)}."
      )


def attention_sources(sub: AttentionConfig, prefix: str) -> dict[str, Source]:
  """Where attention without a gate comes from, biases too if it has them.

  Args:
    sub: Its configuration.
    prefix: Before every name, for example "self_attn.".
  """
  names = {"in_query_gate": "q", "in_key": "k", "in_value": "v", "out": "o"}
  sources = {
    f"sub.{ours}": same(f"{prefix}{theirs}_proj.weight", rank=2)
    for ours, theirs in names.items()
  }
  biases = {"query_gate": "q", "key": "k", "value": "v"} if sub.bias else {}
  biases |= {"out": "o"} if sub.out_bias else {}
  return sources | {
    f"sub.{ours}_bias": same(f"{prefix}{theirs}_proj.bias")
    for ours, theirs in biases.items()
  }


def feed_forward_sources(
  sub: SwiGLUConfig | MLPConfig, prefix: str
) -> dict[str, Source]:
  """Where a feed-forward layer of separate tensors comes from.

  Args:
    sub: Its configuration.
    prefix: Before every name, for example "mlp.".
  """
  parts = ["up", "down"]
  if isinstance(sub, SwiGLUConfig):
    parts.append("gate")
  sources = {
    f"sub.{part}": same(f"{prefix}{part}_proj.weight", rank=2) for part in parts
  }
  if sub.bias:
    sources |= {
      f"sub.{part}_bias": same(f"{prefix}{part}_proj.bias") for part in parts
    }
  return sources


def inside_pair(sources: dict[str, Source], number: int) -> dict[str, Source]:
  """The sources of one of several sublayers under one norm.

  Args:
    sources: Those of the sublayer alone.
    number: Which of the sublayers it is.
  """
  return {
    path.replace("sub.", f"sub.subs.{number}.", 1): source
    for path, source in sources.items()
  }
