"""Families: what is refused of a checkpoint."""

import numpy as np
import pytest

from sparse_prefix_jax.models.checkpoint import read_config
from tests.models.golden_cases import CHOICES, copy, load

REFUSED = [
  ("qwen3_5_moe_1", {"norm_topk_prob": False}, "norm_topk_prob in .* False;"),
  ("qwen3_5_moe_1", {"decoder_sparse_step": 2}, "decoder_sparse_step in .* 2"),
  ("qwen3_5_moe_1", {"mlp_only_layers": [1]}, "mlp_only_layers in .* known"),
  ("qwen3_5_moe_1", {"num_experts": None}, "num_experts in .* int above 0"),
  ("qwen3_5_moe_1", {"num_experts_per_tok": 9}, "chosen is 9; .* experts = 8"),
  ("qwen3_5_moe_1", {"hidden_act": "gelu"}, "hidden_act in .* only 'silu'"),
  ("qwen3_5_moe_1", {"n_group": 2}, "n_group in .* is 2; this key is not"),
  ("qwen3_next_2", {"mlp_only_layers": [3]}, "mlp_only_layers in .* 3 layers"),
  ("qwen3_next_2", {"mlp_only_layers": "1"}, "mlp_only_layers in .* list"),
  ("qwen3_next_2", {"intermediate_size": None}, "intermediate_size in .* int"),
  ("qwen3_next_1", {"norm_topk_prob": 1}, "norm_topk_prob in .* true or false"),
  ("mamba2_1", {"time_step_limit": [0.0, 0.1]}, "time_step_limit in .* only"),
  ("mamba2_1", {"hidden_act": "gelu"}, "hidden_act in .* only 'silu'"),
  ("mamba2_1", {"expand": 3}, "expand in .* is 3; heads .* 64 channels"),
  ("mamba2_1", {"n_groups": 3}, "heads is 4; .* multiple of groups = 3"),
  ("mamba2_1", {"rms_norm": False}, "rms_norm in .* is False; only True"),
  ("mamba2_1", {"intermediate_size": 8}, "intermediate_size in .* only 64"),
  ("qwen3_next_1", {"use_sliding_window": True}, "use_sliding_.* only False"),
  ("olmo_hybrid_1", {"linear_use_gate": False}, "linear_use_gate .* only True"),
  ("granite_hybrid_1", {"attention_bias": 1}, "attention_bias in .* true or"),
  ("granite_hybrid_1", {"layer_types": ["mamba"]}, "names 1 layers; .* = 3"),
  ("granite_hybrid_1", {"layer_types": ["x"] * 3}, "holds 'x'; .* attention"),
  (
    "granite_hybrid_1",
    {"position_embedding_type": "alibi"},
    "position_embedding_type in .* 'alibi'; only 'rope' or 'nope'",
  ),
  (
    "granite_hybrid_2",
    {"partial_rotary_factor": 0.5},
    "4 channels of 8; .* whole",
  ),
  ("granite_hybrid_1", {"logits_scaling": 0}, "logits_scaling in .* above 0"),
  (
    "granite_hybrid_1",
    {"layers_block_type": ["mamba"] * 3},
    "layers_block_type says something else",
  ),
  ("bamba_1", {"attn_layer_indices": [2]}, "attn_layer_.* 2 layers, from 0"),
  ("bamba_1", {"mamba_n_heads": 3}, "mamba_n_heads in .* 48 channels"),
  ("bamba_1", {"attn_rotary_emb": 2}, "attn_rotary_emb in .* 2; only"),
  ("bamba_1", {"mlp_bias": 1}, "mlp_bias in .* is 1; .* true or false"),
  ("nemotron_h_1", {"layers_block_type": ["x"]}, "holds 'x'; it may hold"),
  ("nemotron_h_1", {"layers_block_type": None}, "names 0 layers in .* 1 to"),
  ("nemotron_h_1", {"hybrid_override_pattern": "M-"}, "pattern .* else"),
  ("nemotron_h_1", {"hybrid_override_pattern": "MX"}, "pattern .* made of M E"),
  ("nemotron_h_1", {"mlp_hidden_act": "silu"}, "mlp_hidden_act .* 'relu2'"),
  ("nemotron_h_1", {"sliding_window": 8}, "sliding_window in .* only null"),
  ("nemotron_h_1", {"num_hidden_layers": 2}, "names 3 layers; .* = 2"),
  ("nemotron_h_1", {"rms_norm_eps": 0.5}, "rms_norm_eps in .* 0.5; only"),
  ("nemotron_h_1", {"num_query_groups": 3}, "num_query_groups in .* 3; only"),
  ("nemotron_h_1", {"attention_head_dim": 3}, "attention_head_dim .* 3; only"),
  ("nemotron_h_2", {"n_shared_experts": 2}, "n_shared_experts in .* only 1"),
  ("nemotron_h_3", {"mlp_bias": True}, "mlp_bias in .* True; only False"),
  ("nemotron_h_3", {"topk_group": 5}, "chosen_groups is 5; .* groups = 4"),
  ("falcon_h1_1", {"ssm_multipliers": [1.0] * 4}, "ssm_multipliers .* hold 5"),
  ("falcon_h1_1", {"mlp_multipliers": [1.0, 0]}, "mlp_multipliers .* above 0"),
  ("falcon_h1_1", {"mamba_d_ssm": 32}, "mamba_n_heads .* 48 channels; .* 32"),
  ("falcon_h1_1", {"key_multiplier": -1.0}, "key_multiplier .* above 0"),
  ("olmo_hybrid_1", {"layer_types": ["conv"] * 2}, "holds 'conv'; it may hold"),
  ("olmo_hybrid_1", {"linear_num_value_heads": 3}, "3; .* key_heads = 2"),
  (
    "bamba_1",
    {
      "max_position_embeddings": None,
      "rope_parameters": {"rope_type": "yarn", "factor": 2.0},
    },
    "yarn, which depends on max_position_embeddings",
  ),
  ("lfm2_1", {"theta": 5e4}, "^theta in .* rope_theta says something else"),
  ("lfm2_1", {"full_attn_idxs": []}, "full_attn_idxs says something else"),
  ("mamba_1", {"hidden_act": "gelu"}, "hidden_act in .* only 'silu'"),
  ("mamba_1", {"time_step_rank": 0}, "time_step_rank in .* int above 0"),
  ("falcon_mamba_1", {"mixer_rms_eps": 0}, "mixer_rms_eps in .* above 0"),
  ("jamba_1", {"attn_layer_offset": 2}, "offset in .* attn_layer_period = 2"),
  ("jamba_1", {"num_experts_per_tok": 7}, "chosen is 7; .* experts = 6"),
  ("recurrent_gemma_1", {"block_types": ["x"]}, "holds 'x'; it may hold"),
  ("recurrent_gemma_1", {"block_types": []}, "block_types in .* name a kind"),
  (
    "recurrent_gemma_1",
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
    r"rope_parameters in .* \(linear\); this family rotates without",
  ),
  ("recurrent_gemma_1", {"lru_width": 46}, "channels is 46; .* heads = 4"),
  ("recurrent_gemma_1", {"hidden_activation": "relu"}, "only 'gelu_pytorch"),
  ("recurrent_gemma_1", {"logits_soft_cap": 0}, "logits_soft_cap .* above 0"),
  ("lfm2_1", {"layer_types": ["x"] * 2}, "holds 'x'; it may hold conv"),
  ("lfm2_1", {"tie_embedding": False}, "tie_embedding in .* only True"),
  (
    "lfm2_1",
    {"layer_types": None, "full_attn_idxs": [2]},
    "full_attn_idxs in .* 2 layers, from 0",
  ),
  (
    "lfm2_1",
    {"partial_rotary_factor": 0.5},
    "4 channels of 8; .* whole",
  ),
  ("minimax_1", {"sliding_window": 9}, "sliding_window in .* only null"),
  ("minimax_1", {"mlp_beta_factor": 0}, "mlp_beta_factor in .* above 0"),
  ("minimax_1", {"layer_types": ["x"] * 2}, "holds 'x'; it may hold linear"),
  ("qwen3_next_1", {"attention_bias": True}, "attention_bias in .* True; only"),
  ("kimi_linear_1", {"q_lora_rank": 16}, "q_lora_rank in .* 16; only null"),
  (
    "kimi_linear_1",
    {"mla_use_nope": False},
    "mla_use_nope .* False; only True",
  ),
  ("kimi_linear_1", {"num_key_value_heads": 2}, "num_key_value_.* only 4 can"),
  ("kimi_linear_1", {"n_group": 2}, "num_expert_group in .* something else"),
  ("kimi_linear_1", {"topk_method": "greedy"}, "only 'noaux_tc' can"),
  ("kimi_linear_1", {"mlp_layer_types": ["dense"]}, "there are 3 layers"),
  ("kimi_linear_1", {"first_k_dense_replace": 4}, "must be an int from 0 to 3"),
  ("kimi_linear_1", {"layer_types": ["x"] * 3}, "holds 'x'; it may hold line"),
  (
    "kimi_linear_1",
    {"layer_types": None, "linear_attn_config": {"kda_layers": [1, 3]}},
    "full_attn_layers in linear_attn_config .* each of 1 to 3 once",
  ),
  (
    "kimi_linear_1",
    {"linear_attn_config": {"kda_layers": [1], "full_attn_layers": [2, 3]}},
    "layer_types in .* linear_attn_config says something else",
  ),
  (
    "kimi_linear_1",
    {"linear_attn_config": {"gate_rank": 3}},
    "gate_rank in linear_attn_config .* not known here",
  ),
]


@pytest.mark.parametrize(("case", "changes", "message"), REFUSED)
def test_what_is_not_computed_is_refused(tmp_path, case, changes, message):
  directory = copy(tmp_path, case, **changes)
  with pytest.raises(ValueError, match=message) as refused:
    read_config(directory, **CHOICES)
  assert "\n" not in str(refused.value)
  assert str(directory / "config.json") in str(refused.value)


def test_an_expert_of_another_shape_is_refused(tmp_path):
  name = "model.layers.0.mlp.experts.2.up_proj.weight"
  directory = copy(
    tmp_path, "qwen3_5_moe_1", lambda ts: ts | {name: ts[name][:-1].copy()}
  )
  with pytest.raises(ValueError, match=r"experts\.0\.gate_proj.* asks for"):
    load(directory)


def test_the_first_of_numbered_experts_is_missed_by_its_name(tmp_path):
  name = "model.layers.0.mlp.experts.0.down_proj.weight"

  def without(tensors):
    return {k: x for k, x in tensors.items() if k != name}

  with pytest.raises(ValueError, match=r"no tensor .*experts\.0\.down_proj"):
    load(copy(tmp_path, "qwen3_5_moe_1", without))


@pytest.mark.parametrize("name", ["in_proj_qkvz", "in_proj_ba"])
def test_interleaved_heads_of_another_shape_are_refused(tmp_path, name):
  name = f"model.layers.0.linear_attn.{name}.weight"
  directory = copy(
    tmp_path, "qwen3_next_1", lambda ts: ts | {name: ts[name][:-1].copy()}
  )
  with pytest.raises(
    ValueError, match=r"linear_attn\..* has shape .* asks for"
  ):
    load(directory)


@pytest.mark.parametrize(
  ("case", "first", "second"),
  [
    ("kimi_linear_1", "self_attn.q_proj", "self_attn.k_proj"),
    ("kimi_linear_1", "self_attn.q_conv1d", "self_attn.v_conv1d"),
    ("kimi_linear_1", "self_attn.f_a_proj", "self_attn.g_a_proj"),
    ("kimi_linear_1", "self_attn.g_a_proj", "self_attn.b_proj"),
    ("olmo_hybrid_1", "linear_attn.q_proj", "linear_attn.v_proj"),
    ("olmo_hybrid_1", "linear_attn.a_proj", "linear_attn.b_proj"),
    ("qwen3_5_moe_1", "linear_attn.in_proj_a", "linear_attn.in_proj_b"),
  ],
)
def test_rows_of_another_tensor_are_refused(tmp_path, case, first, second):
  """Tensors that become one product have their own numbers of rows."""
  names = [f"model.layers.0.{name}.weight" for name in (first, second)]

  def moved(tensors):
    x, y = (tensors[name] for name in names)
    changed = dict(zip(names, (x[:-1], np.concatenate([x[-1:], y]))))
    return tensors | changed

  with pytest.raises(ValueError, match=r"has shape .* asks for"):
    load(copy(tmp_path, case, moved))
