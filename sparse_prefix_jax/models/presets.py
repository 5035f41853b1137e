"""Named configurations."""

from typing import Any

from sparse_prefix_jax.kinds import brief
from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  GatedDeltaNetConfig,
  Mamba2Config,
  Numerics,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.published import PUBLISHED
from sparse_prefix_jax.models.qwen_form import (
  ATTENTION,
  GATED_DELTA_NET,
  groups_of_layers,
  hybrid,
)

_FEED_FORWARD = Branch(SwiGLUConfig(hidden=256))

PRESETS: dict[str, ModelConfig] = {
  # For tests: compiles in seconds, every mechanism present.
  "tiny": hybrid(
    vocab_size=512,
    width=64,
    hidden=128,
    layer_types=(GATED_DELTA_NET, ATTENTION),
    key_heads=2,
    value_heads=4,
    key_width=32,
    value_width=32,
    heads=4,
    kv_heads=2,
    head_width=32,
    rotary_width=16,
    numerics=Numerics(ladder=(1, 2, 4), max_length=4096),
  ),
  # For the demonstration: a few million parameters, vocabulary of its BPE; few
  # rungs, since each is compiled before the first request is served.
  "demo": hybrid(
    vocab_size=2048,
    width=256,
    hidden=512,
    layer_types=groups_of_layers(1),
    key_heads=2,
    value_heads=2,
    key_width=64,
    value_width=64,
    heads=2,
    kv_heads=1,
    head_width=64,
    rotary_width=16,
    numerics=Numerics(ladder=(1, 4, 16), max_length=4096),
  ),
  # What `train` trains: attention sees 64 tokens, so that whatever stands
  # further back comes from the states alone. At the value of a fact, five taps
  # see both words of its name. The vocabulary is that of `workloads.recall`.
  "recall": ModelConfig(
    vocab_size=704,
    width=128,
    branches=(
      Branch(Mamba2Config(heads=2, groups=1, head_width=64, state_width=64)),
      _FEED_FORWARD,
      Branch(
        AttentionConfig(
          heads=2,
          kv_heads=1,
          head_width=64,
          rotary_width=32,
          rope_theta=1e4,
          attention_window=64,
        )
      ),
      _FEED_FORWARD,
      Branch(
        GatedDeltaNetConfig(
          key_heads=2,
          value_heads=2,
          key_width=128,
          value_width=64,
          window=5,
        )
      ),
      _FEED_FORWARD,
    ),
    numerics=Numerics(ladder=(1, 4, 16), max_length=8192),
  ),
  # One layer group of Qwen3.5-0.8B, as the paper measures it.
  "qwen3_5_0_8b_group": hybrid(
    vocab_size=512, width=1024, hidden=3584, layer_types=groups_of_layers(1)
  ),
  "qwen3_5_0_8b": hybrid(
    vocab_size=248320, width=1024, hidden=3584, layer_types=groups_of_layers(6)
  ),
  **PUBLISHED,
}
"""Every configuration that `preset` knows, by name."""


def preset(name: str, **changes: Any) -> ModelConfig:
  """Returns the configuration of that name, with some fields replaced.

  Args:
    name: A key of PRESETS.
    **changes: Fields of `ModelConfig` or of `Numerics`, for example
      `dtype="bfloat16"`.

  Returns:
    A frozen configuration.

  Raises:
    ValueError: If the name is unknown, a field does not exist, or a value is
      out of its range.

  Example:
    >>> preset("tiny", dtype="bfloat16").numerics.dtype
    'bfloat16'
  """
  if not isinstance(name, str) or name not in PRESETS:
    raise ValueError(
      f"preset is {brief(name)}; the presets are {', '.join(PRESETS)}."
    )
  return PRESETS[name].replace(**changes)
