"""Foreign names: one file for each family of models, one line for it here."""

from sparse_prefix_jax.models.families.bamba import BAMBA
from sparse_prefix_jax.models.families.falcon_h1 import FALCON_H1
from sparse_prefix_jax.models.families.family import Family as Family
from sparse_prefix_jax.models.families.fields import Fields as Fields
from sparse_prefix_jax.models.families.granite_hybrid import GRANITE_HYBRID
from sparse_prefix_jax.models.families.jamba import JAMBA
from sparse_prefix_jax.models.families.kimi_linear import KIMI_LINEAR
from sparse_prefix_jax.models.families.lfm2 import LFM2
from sparse_prefix_jax.models.families.mamba import MAMBA
from sparse_prefix_jax.models.families.mamba2 import MAMBA2
from sparse_prefix_jax.models.families.minimax import MINIMAX
from sparse_prefix_jax.models.families.nemotron_h import NEMOTRON_H
from sparse_prefix_jax.models.families.olmo_hybrid import OLMO_HYBRID
from sparse_prefix_jax.models.families.qwen3_5 import QWEN3_5
from sparse_prefix_jax.models.families.qwen3_5_moe import QWEN3_5_MOE
from sparse_prefix_jax.models.families.qwen3_next import QWEN3_NEXT
from sparse_prefix_jax.models.families.recurrent_gemma import RECURRENT_GEMMA

FAMILIES: tuple[Family, ...] = (
  *(QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT),
  *(MAMBA2, BAMBA, GRANITE_HYBRID, NEMOTRON_H),
  *(FALCON_H1, OLMO_HYBRID),
  *(MAMBA, JAMBA, RECURRENT_GEMMA, LFM2, MINIMAX),
  KIMI_LINEAR,
)
"""Every family that can be loaded."""


def family_of(fields: Fields) -> Family:
  """Finds the family that `model_type` names.

  Args:
    fields: A configuration.

  Raises:
    ValueError: If it is none of those that can be loaded; they are listed.

  Example:
    >>> family_of(Fields({"model_type": "qwen3_5_text"}, "config.json")).head
    'lm_head.weight'
  """
  name = fields.get("model_type")
  for family in FAMILIES:
    if name in family.model_types:
      return family
  known = ", ".join(name for f in FAMILIES for name in f.model_types)
  raise fields.error("model_type", f"those that can be loaded are {known}")
