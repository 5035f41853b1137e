"""What families with Mamba layers, 1 and 2, share: how tensors are named."""

import math
from typing import Any

import numpy as np

from sparse_prefix_jax.layers import Mamba2Config, MambaConfig
from sparse_prefix_jax.models.families.family import (
  Source,
  rows_of,
  same,
  taps_first,
)
from sparse_prefix_jax.models.families.fields import Fields
from sparse_prefix_jax.models.families.plain import check_decoder

_PARTS = ("dt", "b", "c")
STEP_KEYS = frozenset({"time_step_max", "time_step_min"})
"""How the steps of Mamba-2 were initialised, which changes no logits."""
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
  if sub.has_out_bias:
    sources["sub.out_bias"] = same(f"{prefix}out_proj.bias")
  if sub.conv_bias:
    sources["sub.conv_bias"] = same(f"{prefix}conv1d.bias")
  if sub.norm != "none":
    sources["sub.norm"] = same(f"{prefix}norm.weight")
  return sources | {
    "sub.conv": taps_first(f"{prefix}conv1d.weight"),
    "sub.log_rate": same(f"{prefix}A_log"),
    "sub.step_bias": same(f"{prefix}dt_bias"),
    "sub.direct": same(f"{prefix}D"),
    "sub.out": same(f"{prefix}out_proj.weight", rank=2),
  }


def mamba_sources(sub: MambaConfig, prefix: str) -> dict[str, Source]:
  """Where a Mamba layer comes from: one projection is cut into two.

  Args:
    sub: Its configuration.
    prefix: Before every name, for example "mixer.".
  """
  weight, bias = f"{prefix}in_proj.weight", f"{prefix}in_proj.bias"
  cuts = {"in_mixed": (0, sub.inner_width), "in_gate": (sub.inner_width, 2**30)}
  sources = {f"sub.{name}": rows_of(weight, *cut) for name, cut in cuts.items()}
  if sub.bias:
    sources |= {
      f"sub.{name}_bias": rows_of(bias, *cut, rank=1)
      for name, cut in cuts.items()
    }
    sources["sub.out_bias"] = same(f"{prefix}out_proj.bias")
  if sub.conv_bias:
    sources["sub.conv_bias"] = same(f"{prefix}conv1d.bias")
  if sub.part_norm == "weighted":
    names = tuple(f"{prefix}{part}_layernorm.weight" for part in _PARTS)
    sources["sub.part_norm"] = Source(names, (1,) * len(names), _one_by_one)
  return sources | {
    "sub.conv": taps_first(f"{prefix}conv1d.weight"),
    "sub.parts": same(f"{prefix}x_proj.weight", rank=2),
    "sub.in_step": same(f"{prefix}dt_proj.weight", rank=2),
    "sub.step_bias": same(f"{prefix}dt_proj.bias"),
    "sub.log_rate": same(f"{prefix}A_log", rank=2),
    "sub.direct": same(f"{prefix}D"),
    "sub.out": same(f"{prefix}out_proj.weight", rank=2),
  }


def _one_by_one(*parts: np.ndarray) -> np.ndarray:
  """Weights of several norms, one behind the other."""
  return np.concatenate(parts)


def read_mamba2(fields: Fields, eps: float, **choices: Any) -> Mamba2Config:
  """Reads the recurrent layers of a hybrid, under keys that begin with mamba.

  The width of their heads may be left to be derived.

  Args:
    fields: The text configuration.
    eps: What its norms add to a mean square.
    **choices: Other fields of `Mamba2Config`.

  Raises:
    ValueError: If a count is out of its range, or heads do not make up the
      expanded width.
  """
  heads, times = fields.count("mamba_n_heads"), fields.count("mamba_expand", 2)
  derived = fields.get("mamba_d_head") in (None, "auto")
  inner = fields.count("mamba_d_ssm", times * fields.count("hidden_size"))
  sub = Mamba2Config(
    heads=heads,
    groups=fields.count("mamba_n_groups", 1),
    head_width=max(1, inner // heads)
    if derived
    else fields.count("mamba_d_head"),
    state_width=fields.count("mamba_d_state"),
    window=fields.count("mamba_d_conv", 4),
    bias=fields.flag("mamba_proj_bias", False),
    conv_bias=fields.flag("mamba_conv_bias", True),
    eps=eps,
    **choices,
  )
  if inner != sub.inner_width:
    raise fields.error(
      "mamba_n_heads",
      f"heads and their width make {sub.inner_width} channels; mamba_d_ssm, or "
      f"mamba_expand times hidden_size, is {inner}",
    )
  return sub


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
  check_decoder(fields)
