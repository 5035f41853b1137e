"""The random checkpoint of the layer group as a file that llama.cpp reads.

Written by llama.cpp's own package `gguf`, with the names that its architecture
`qwen35` has: https://github.com/ggml-org/llama.cpp (conversion/qwen.py). There
is no vocabulary, as both sides are given ids.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

# By name: the types of an extra that is not installed are nobody's error.
gguf: Any = importlib.import_module("gguf")
torch: Any = importlib.import_module("torch")
safetensors: Any = importlib.import_module("safetensors.torch")

_OF_LAYER = {
  "input_layernorm.weight": "attn_norm.weight",
  "post_attention_layernorm.weight": "post_attention_norm.weight",
  "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
  "linear_attn.in_proj_z.weight": "attn_gate.weight",
  "linear_attn.in_proj_b.weight": "ssm_beta.weight",
  "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
  "linear_attn.conv1d.weight": "ssm_conv1d.weight",
  "linear_attn.A_log": "ssm_a",
  "linear_attn.dt_bias": "ssm_dt.bias",
  "linear_attn.norm.weight": "ssm_norm.weight",
  "linear_attn.out_proj.weight": "ssm_out.weight",
  "self_attn.q_proj.weight": "attn_q.weight",
  "self_attn.k_proj.weight": "attn_k.weight",
  "self_attn.v_proj.weight": "attn_v.weight",
  "self_attn.o_proj.weight": "attn_output.weight",
  "self_attn.q_norm.weight": "attn_q_norm.weight",
  "self_attn.k_norm.weight": "attn_k_norm.weight",
  "mlp.gate_proj.weight": "ffn_gate.weight",
  "mlp.up_proj.weight": "ffn_up.weight",
  "mlp.down_proj.weight": "ffn_down.weight",
}
_OF_MODEL = {
  "model.embed_tokens.weight": "token_embd.weight",
  "model.norm.weight": "output_norm.weight",
}


def write_gguf(directory: str, dtype: str) -> Path:
  """Writes the checkpoint of a directory beside itself.

  Args:
    directory: With config.json and model.safetensors of the layer group, which
      has as many value heads as key heads.
    dtype: Of the matrices: "float32" or "bfloat16".

  Returns:
    The file.
  """
  path = Path(directory, "model.gguf")
  writer = gguf.GGUFWriter(path, "qwen35")
  text = Path(directory, "config.json").read_text(encoding="utf-8")
  _write_configuration(writer, json.loads(text))
  weights = safetensors.load_file(str(Path(directory, "model.safetensors")))
  for name, tensor in weights.items():
    _write_tensor(writer, name, tensor, dtype)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def _write_configuration(writer: Any, config: dict[str, Any]) -> None:
  rope = config["rope_parameters"]
  writer.add_vocab_size(config["vocab_size"])
  writer.add_tokenizer_model("no_vocab")
  writer.add_block_count(config["num_hidden_layers"])
  writer.add_context_length(config["max_position_embeddings"])
  writer.add_embedding_length(config["hidden_size"])
  writer.add_feed_forward_length(config["intermediate_size"])
  writer.add_head_count(config["num_attention_heads"])
  writer.add_head_count_kv(config["num_key_value_heads"])
  writer.add_key_length(config["head_dim"])
  writer.add_value_length(config["head_dim"])
  writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
  writer.add_rope_freq_base(rope["rope_theta"])
  rotated = int(config["head_dim"] * rope["partial_rotary_factor"])
  writer.add_rope_dimension_count(rotated)
  writer.add_rope_dimension_sections([*rope["mrope_section"], 0])
  writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
  writer.add_ssm_state_size(config["linear_key_head_dim"])
  writer.add_ssm_group_count(config["linear_num_key_heads"])
  writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
  values = config["linear_value_head_dim"] * config["linear_num_value_heads"]
  writer.add_ssm_inner_size(values)
  writer.add_full_attention_interval(4)


def _write_tensor(writer: Any, name: str, tensor: Any, dtype: str) -> None:
  """One weight, as the other side wants it."""
  values = tensor.float().squeeze().numpy()
  if name.endswith("A_log"):
    values = -np.exp(values)
  elif name.endswith("norm.weight") and "linear_attn" not in name:
    values = values + 1  # There the scale is what it is, here it is around 0.
  target = _OF_MODEL.get(name) or _name_in_layer(name)
  if values.ndim == 1 or "conv1d" in name or dtype == "float32":
    writer.add_tensor(target, np.ascontiguousarray(values))
    return
  kind = gguf.GGMLQuantizationType.BF16
  writer.add_tensor(target, gguf.quantize(values, kind), raw_dtype=kind)


def _name_in_layer(name: str) -> str:
  _, _, layer, rest = name.split(".", 3)
  return f"blk.{layer}.{_OF_LAYER[rest]}"
