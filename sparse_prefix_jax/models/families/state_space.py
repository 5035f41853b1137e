"""What families with Mamba-2 layers share: how its tensors are named."""

import math

from sparse_prefix_jax.layers import Mamba2Config
from sparse_prefix_jax.models.families.family import (
  Source,
  rows_of,
  same,
  taps_first,
  transposed,
)
from sparse_prefix_jax.models.families.fields import Fields

_NO_LIMIT = ([0.0, {"__float__": "Infinity"}], [0.0, math.inf], [0, math.inf])


def mamba2_sources(sub: Mamba2Config, prefix: str) -> dict[str, Source]:
  """Where a Mamba-2 layer comes from: one projection is cut into three.

  Args:
    sub: Its configuration.
    prefix: Before every name, for example "mixer.".
  """
  weight, bias = f"{prefix}in_proj.weight", f"{prefix}in_proj.bias"
  inner, mixed = sub.inner_width, sub.inner_width + sub.mixed_width
  cuts = {
    "in_gate": (0, inner),
    "in_mixed": (inner, mixed),
    "in_step": (mixed, 2**30),
  }
  sources = {f"sub.{name}": rows_of(weight, *cut) for name, cut in cuts.items()}
  if sub.bias:
    sources |= {
      f"sub.{name}_bias": rows_of(bias, *cut, rank=1)
      for name, cut in cuts.items()
    }
    sources["sub.out_bias"] = same(f"{prefix}out_proj.bias")
  if sub.conv_bias:
    sources["sub.conv_bias"] = same(f"{prefix}conv1d.bias")
  return sources | {
    "sub.conv": taps_first(f"{prefix}conv1d.weight"),
    "sub.log_rate": same(f"{prefix}A_log"),
    "sub.step_bias": same(f"{prefix}dt_bias"),
    "sub.direct": same(f"{prefix}D"),
    "sub.norm": same(f"{prefix}norm.weight"),
    "sub.out": transposed(f"{prefix}out_proj.weight"),
  }


def check_inner_width(fields: Fields, expand: str, sub: Mamba2Config) -> None:
  """Refuses heads that do not make up the expanded width.

  Args:
    fields: The text configuration.
    expand: The key of how many times the model width that is.
    sub: What was read.

  Raises:
    ValueError: If they do not.
  """
  times, width = fields.count(expand, 2), fields.count("hidden_size")
  if times * width != sub.inner_width:
    raise fields.error(
      expand,
      f"heads and their width make {sub.inner_width} channels, which must be "
      f"as many times hidden_size = {width}",
    )


def check_plain(fields: Fields) -> None:
  """Refuses what changes the logits of a state-space layer, if it is asked."""
  fields.only("hidden_act", "silu")
  fields.only("time_step_limit", *_NO_LIMIT)
  fields.only("is_encoder_decoder", False)
  fields.only("is_decoder", False, True)
  fields.only("add_cross_attention", False)
  fields.only("tie_encoder_decoder", False)
