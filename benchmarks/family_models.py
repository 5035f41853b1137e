"""A model of middling size of each family, as transformers configures it.

Wide enough that products fill a core and small enough that all of them are
measured in minutes: 512 channels, four layers in the order of the family, a
vocabulary of 512. The heads of states and of keys are those that published
models have, fewer of them.
"""

import copy
import importlib
from collections.abc import Mapping
from typing import Any

# By name: the types of an extra that is not installed are nobody's error.
transformers: Any = importlib.import_module("transformers")

VOCABULARY = 512
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_COMMON = {
  "vocab_size": VOCABULARY,
  "hidden_size": 512,
  "num_hidden_layers": 4,
}
_ATTENTION = {
  "intermediate_size": 1536,
  "num_attention_heads": 8,
  "num_key_value_heads": 2,
  "max_position_embeddings": 8192,
}
_THREE_TO_ONE = {
  "layer_types": [*("linear_attention",) * 3, "full_attention"],
}
_DELTA = {
  "linear_num_key_heads": 4,
  "linear_num_value_heads": 8,
  "linear_key_head_dim": 128,
  "linear_value_head_dim": 128,
  "rope_parameters": _ROPE | {"partial_rotary_factor": 0.25},
}
_EXPERTS = {
  "num_experts": 16,
  "num_experts_per_tok": 4,
  "moe_intermediate_size": 256,
  "shared_expert_intermediate_size": 256,
}
_MAMBA2 = {
  "mamba_n_heads": 16,
  "mamba_d_head": 64,
  "mamba_d_state": 128,
  "mamba_n_groups": 1,
  "rope_parameters": _ROPE,
}

FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
  "qwen3_5": (
    "Qwen3_5TextConfig",
    _ATTENTION
    | {"head_dim": 64}
    | _THREE_TO_ONE
    | _DELTA
    | {
      "rope_parameters": _DELTA["rope_parameters"]
      | {"mrope_section": [4, 2, 2]}
    },
  ),
  "qwen3_5_moe": (
    "Qwen3_5MoeTextConfig",
    _ATTENTION | {"head_dim": 64} | _THREE_TO_ONE | _DELTA | _EXPERTS,
  ),
  "qwen3_next": (
    "Qwen3NextConfig",
    _ATTENTION | {"head_dim": 64} | _THREE_TO_ONE | _DELTA | _EXPERTS,
  ),
  "mamba2": (
    "Mamba2Config",
    {"num_heads": 16, "head_dim": 64, "state_size": 128, "n_groups": 1},
  ),
  "bamba": ("BambaConfig", _ATTENTION | _MAMBA2 | {"attn_layer_indices": [3]}),
  "granite_hybrid": (
    "GraniteMoeHybridConfig",
    _ATTENTION
    | _MAMBA2
    | _THREE_TO_ONE
    | {"num_local_experts": 0, "shared_intermediate_size": 1536},
  ),
  "nemotron_h": (
    "NemotronHConfig",
    _ATTENTION
    | {
      "head_dim": 64,
      "layers_block_type": [
        *("linear_attention", "mlp") * 3,
        *("full_attention", "mlp"),
      ],
      "num_hidden_layers": 8,
      "mamba_num_heads": 16,
      "mamba_head_dim": 64,
      "ssm_state_size": 128,
      "n_groups": 1,
    },
  ),
  "falcon_h1": (
    "FalconH1Config",
    _ATTENTION
    | {
      "mamba_d_ssm": 1024,
      "mamba_n_heads": 16,
      "mamba_d_head": 64,
      "mamba_d_state": 128,
      "rope_parameters": _ROPE,
    },
  ),
  "olmo_hybrid": (
    "OlmoHybridConfig",
    _ATTENTION
    | _THREE_TO_ONE
    | {
      "linear_num_key_heads": 4,
      "linear_num_value_heads": 4,
      "linear_key_head_dim": 96,
      "linear_value_head_dim": 192,
      "pad_token_id": 0,
    },
  ),
  "mamba": ("MambaConfig", {"state_size": 16}),
  "falcon_mamba": ("FalconMambaConfig", {"state_size": 16}),
  "jamba": (
    "JambaConfig",
    _ATTENTION
    | {
      "attn_layer_period": 4,
      "attn_layer_offset": 3,
      "expert_layer_period": 2,
      "expert_layer_offset": 1,
      "num_experts": 8,
      "num_experts_per_tok": 2,
      "mamba_d_state": 16,
    },
  ),
  "recurrent_gemma": (
    "RecurrentGemmaConfig",
    _ATTENTION
    | {
      "num_key_value_heads": 1,
      "lru_width": 512,
      "block_types": ["recurrent", "recurrent", "attention"],
      "attention_window_size": 1024,
    },
  ),
  "lfm2": (
    "Lfm2Config",
    _ATTENTION | {"layer_types": ["conv", "conv", "conv", "full_attention"]},
  ),
  "minimax": (
    "MiniMaxConfig",
    _ATTENTION
    | _THREE_TO_ONE
    | {
      "num_local_experts": 8,
      "num_experts_per_tok": 2,
      "intermediate_size": 512,
      "rope_parameters": _ROPE,
    },
  ),
  "kimi_linear": (
    "KimiLinearConfig",
    _ATTENTION
    | _THREE_TO_ONE
    | {
      "num_key_value_heads": 8,
      "kv_lora_rank": 192,
      "qk_nope_head_dim": 64,
      "qk_rope_head_dim": 64,
      "v_head_dim": 64,
      "linear_num_heads": 8,
      "linear_head_dim": 64,
      "num_local_experts": 16,
      "num_experts_per_tok": 4,
      "moe_intermediate_size": 256,
      "pad_token_id": 0,
    },
  ),
}
"""Of each family: its configuration in transformers, and what is its own."""


def configuration(family: str, **changes: Any) -> Any:
  """The configuration of a family's model, as transformers has it.

  Args:
    family: A key of `FAMILIES`.
    **changes: Fields that differ from those above.
  """
  name, fields = FAMILIES[family]
  # transformers writes into the dictionaries that it is given.
  fields = copy.deepcopy(_COMMON | fields | changes)
  return getattr(transformers, name)(**fields)
