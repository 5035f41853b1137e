"""Directories of a tiny Qwen3.5 text model, written without any library."""

import json

import ml_dtypes
import numpy as np

DTYPES = {
  "F64": np.float64,
  "F32": np.float32,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E8M0": ml_dtypes.float8_e8m0fnu,
  "I8": np.int8,
  "I32": np.int32,
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def tiny_config(**changes):
  """A configuration of one recurrent layer and one of attention."""
  return {
    "architectures": ["Qwen3_5ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "float32",
    "eos_token_id": 3,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 4,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_value_head_dim": 8,
    "max_position_embeddings": 512,
    "model_type": "qwen3_5_text",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
      "mrope_interleaved": True,
      "mrope_section": [1, 1, 0],
      "partial_rotary_factor": 0.5,
      "rope_theta": 10000.0,
      "rope_type": "default",
    },
    "tie_word_embeddings": False,
    "transformers_version": "5.24.0",
    "use_cache": True,
    "vocab_size": 32,
  } | changes


def tiny_tensors(config, seed=0):
  """Random weights in float32 for such a configuration, by name."""
  c, draw = config, np.random.default_rng(seed)
  d, hidden = c["hidden_size"], c["intermediate_size"]
  keys = c["linear_num_key_heads"] * c["linear_key_head_dim"]
  value_heads = c["linear_num_value_heads"]
  values = value_heads * c["linear_value_head_dim"]
  queries = c["num_attention_heads"] * c["head_dim"]
  shared = c["num_key_value_heads"] * c["head_dim"]
  mixers = {
    "linear_attention": {
      "linear_attn.in_proj_qkv.weight": (2 * keys + values, d),
      "linear_attn.in_proj_z.weight": (values, d),
      "linear_attn.in_proj_a.weight": (value_heads, d),
      "linear_attn.in_proj_b.weight": (value_heads, d),
      "linear_attn.conv1d.weight": (
        2 * keys + values,
        1,
        c["linear_conv_kernel_dim"],
      ),
      "linear_attn.A_log": (value_heads,),
      "linear_attn.dt_bias": (value_heads,),
      "linear_attn.norm.weight": (c["linear_value_head_dim"],),
      "linear_attn.out_proj.weight": (d, values),
    },
    "full_attention": {
      "self_attn.q_proj.weight": (2 * queries, d),
      "self_attn.k_proj.weight": (shared, d),
      "self_attn.v_proj.weight": (shared, d),
      "self_attn.o_proj.weight": (d, queries),
      "self_attn.q_norm.weight": (c["head_dim"],),
      "self_attn.k_norm.weight": (c["head_dim"],),
    },
  }
  shapes = {
    "model.embed_tokens.weight": (c["vocab_size"], d),
    "model.norm.weight": (d,),
  }
  if not c["tie_word_embeddings"]:
    shapes["lm_head.weight"] = (c["vocab_size"], d)
  for index, kind in enumerate(c["layer_types"]):
    layer = {
      "input_layernorm.weight": (d,),
      "post_attention_layernorm.weight": (d,),
      "mlp.gate_proj.weight": (hidden, d),
      "mlp.up_proj.weight": (hidden, d),
      "mlp.down_proj.weight": (d, hidden),
    } | mixers[kind]
    shapes |= {f"model.layers.{index}.{n}": s for n, s in layer.items()}
  return {
    name: (0.5 * draw.normal(size=shape)).astype(np.float32)
    for name, shape in shapes.items()
  }


def encode(tensors, metadata=None, pad=0):
  """The bytes of a safetensors file."""
  header, parts, start = {}, [], 0
  if metadata is not None:
    header["__metadata__"] = metadata
  for name, value in tensors.items():
    content = np.ascontiguousarray(value).tobytes()
    header[name] = {
      "dtype": NAMES[value.dtype],
      "shape": list(value.shape),
      "data_offsets": [start, start + len(content)],
    }
    parts.append(content)
    start += len(content)
  text = json.dumps(header).encode() + b" " * pad
  return len(text).to_bytes(8, "little") + text + b"".join(parts)


def write(directory, config, tensors, shards=1, stem="model"):
  """Writes config.json and the weights, with an index if there are shards.

  Returns:
    The directory.
  """
  directory.mkdir(parents=True, exist_ok=True)
  (directory / "config.json").write_text(json.dumps(config))
  if shards == 1:
    content = encode(tensors, {"format": "pt"})
    (directory / f"{stem}.safetensors").write_bytes(content)
    return directory
  places, names = {}, sorted(tensors)
  for number in range(shards):
    file = f"{stem}-{number + 1:05d}-of-{shards:05d}.safetensors"
    part = {name: tensors[name] for name in names[number::shards]}
    (directory / file).write_bytes(encode(part, {"format": "pt"}))
    places |= dict.fromkeys(part, file)
  index = {"metadata": {"total_size": 1}, "weight_map": places}
  (directory / "model.safetensors.index.json").write_text(json.dumps(index))
  return directory


def tiny(directory, changes=None, tensors=None, **options):
  """Writes the tiny model with some keys and tensors replaced."""
  config = tiny_config(**(changes or {}))
  return write(
    directory, config, tiny_tensors(config) | (tensors or {}), **options
  )


def quantized_fp8(weight, block, scale_dtype=np.float32):
  """Rounds a weight to 8-bit floats, one scale for each block.

  Returns:
    The stored weight and its scale, `weight_scale_inv`.
  """
  high, wide = map(min, block or weight.shape, weight.shape)
  rows, columns = -(-weight.shape[0] // high), -(-weight.shape[1] // wide)
  scale = np.ones((rows, columns), np.float32)
  for i in range(rows):
    for j in range(columns):
      part = weight[i * high : (i + 1) * high, j * wide : (j + 1) * wide]
      scale[i, j] = np.abs(part).max() / 448
  if scale_dtype == ml_dtypes.float8_e8m0fnu:
    scale = 2.0 ** np.ceil(np.log2(scale))
  scale = scale.astype(scale_dtype)
  spread = np.repeat(np.repeat(scale.astype(np.float32), high, 0), wide, 1)
  spread = spread[: weight.shape[0], : weight.shape[1]]
  stored = (weight / spread).astype(ml_dtypes.float8_e4m3fn)
  return stored, scale if block else scale.reshape(())


def quantized_int8(weight):
  """Rounds a weight to 8-bit integers, one scale for each row.

  Returns:
    The stored weight and its scale, `weight_scale`.
  """
  scale = np.abs(weight).max(1, keepdims=True) / 127
  return np.round(weight / scale).astype(np.int8), scale.astype(np.float32)
