"""A reader and a forward pass of Qwen3.5 text in float64; nothing of ours.

It believes what it reads: whether a directory may be read is not asked here.
"""

import json
import math
import pathlib
import re

import numpy as np

from tests.models.tiny_checkpoint import DTYPES

# Where the names of the text model begin, whatever stands before.
_ROOT = re.compile(r"(?:^|\.)((?:embed_tokens|layers|norm|lm_head)\..*)$")
_BESIDE = re.compile(r"(?:^|\.)(?:mtp|visual)\.")


def logits(directory, tokens):
  """The logits of all tokens. [t vocabulary]"""
  raw = json.loads((pathlib.Path(directory) / "config.json").read_text())
  text = raw.get("text_config") or raw
  weights = _weights(pathlib.Path(directory), raw, text)
  x = weights["embed_tokens.weight"][np.asarray(tokens)]
  eps = text["rms_norm_eps"]
  for index, kind in enumerate(_kinds(text)):
    prefix = f"layers.{index}."
    layer = {
      name.removeprefix(prefix): value
      for name, value in weights.items()
      if name.startswith(prefix)
    }
    mix = _attention if kind == "full_attention" else _gated_delta_net
    x = x + mix(_norm(x, layer["input_layernorm.weight"], eps), layer, text)
    h = _norm(x, layer["post_attention_layernorm.weight"], eps)
    gated = _silu(h @ layer["mlp.gate_proj.weight"].T)
    gated = gated * (h @ layer["mlp.up_proj.weight"].T)
    x = x + gated @ layer["mlp.down_proj.weight"].T
  head = weights.get("lm_head.weight", weights["embed_tokens.weight"])
  return _norm(x, weights["norm.weight"], eps) @ head.T


def read_file(path):
  """Tensors of a safetensors file by name, in their own types."""
  content = path.read_bytes()
  data = 8 + int.from_bytes(content[:8], "little")
  header = json.loads(content[8:data])
  header.pop("__metadata__", None)
  tensors = {}
  for name, entry in header.items():
    start, end = entry["data_offsets"]
    values = np.frombuffer(content[data + start : data + end], np.uint8)
    dtype = DTYPES[entry["dtype"]]
    tensors[name] = values.view(dtype).reshape(entry["shape"])
  return tensors


def _weights(directory, raw, text):
  stored = {}
  for path in sorted(directory.glob("*.safetensors")):
    for name, value in read_file(path).items():
      match = _ROOT.search(name)
      if match and not _BESIDE.search(name):
        stored[match[1]] = value
  scheme = raw.get("quantization_config") or text.get("quantization_config")
  weights = {}
  for name, value in stored.items():
    if "_scale" not in name:
      scale = stored.get(f"{name}_scale_inv", stored.get(f"{name}_scale"))
      weights[name] = _whole(value, scale, scheme)
  return weights


def _whole(value, scale, scheme):
  """Values in float64; quantised ones in float32, as they are defined."""
  if scale is None:
    return value.astype(np.float64)
  value, scale = value.astype(np.float32), scale.astype(np.float32)
  block = (scheme or {}).get("weight_block_size")
  if block:
    rows = np.arange(value.shape[0]) // block[0]
    columns = np.arange(value.shape[1]) // block[1]
    scale = scale[rows][:, columns]
  return (value * scale).astype(np.float64)


def _kinds(text):
  if text.get("layer_types") is not None:
    return text["layer_types"]
  every = text.get("full_attention_interval") or 4
  return [
    "linear_attention" if (i + 1) % every else "full_attention"
    for i in range(text["num_hidden_layers"])
  ]


def _silu(x):
  return x * _sigmoid(x)


def _sigmoid(x):
  return np.exp(-np.logaddexp(0, -x))


def _norm(x, weight, eps):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * (1 + weight)


def _gated_delta_net(x, layer, text):
  heads, value_heads = (text[f"linear_num_{n}_heads"] for n in ("key", "value"))
  k, v = (text[f"linear_{n}_head_dim"] for n in ("key", "value"))
  weight = {n.removeprefix("linear_attn."): u for n, u in layer.items()}
  mixed = x @ weight["in_proj_qkv.weight"].T
  taps = weight["conv1d.weight"][:, 0]
  window = taps.shape[1]
  padded = np.concatenate([np.zeros((window - 1, mixed.shape[1])), mixed])
  mixed = _silu(sum(padded[i : i + len(x)] * taps[:, i] for i in range(window)))
  q, key, value = np.split(mixed, [heads * k, 2 * heads * k], axis=1)
  q, key = (u.reshape(-1, heads, k) for u in (q, key))
  q, key = (u / np.sqrt((u**2).sum(-1, keepdims=True) + 1e-6) for u in (q, key))
  q = q * k**-0.5
  q, key = (np.repeat(u, value_heads // heads, 1) for u in (q, key))
  value = value.reshape(-1, value_heads, v)
  beta = _sigmoid(x @ weight["in_proj_b.weight"].T)
  gate = x @ weight["in_proj_a.weight"].T + weight["dt_bias"]
  decay = np.exp(-np.exp(weight["A_log"]) * np.logaddexp(0, gate))
  state, out = np.zeros((value_heads, k, v)), []
  for t in range(len(x)):
    state = state * decay[t][:, None, None]
    seen = np.einsum("hkv,hk->hv", state, key[t])
    new = (value[t] - seen) * beta[t][:, None]
    state = state + key[t][:, :, None] * new[:, None]
    out.append(np.einsum("hkv,hk->hv", state, q[t]))
  out = np.stack(out)
  out = out / np.sqrt((out**2).mean(-1, keepdims=True) + text["rms_norm_eps"])
  z = (x @ weight["in_proj_z.weight"].T).reshape(out.shape)
  out = out * weight["norm.weight"] * _silu(z)
  return out.reshape(len(x), -1) @ weight["out_proj.weight"].T


def _attention(x, layer, text):
  width, t = text.get("head_dim", 256), len(x)
  heads, shared = text["num_attention_heads"], text["num_key_value_heads"]
  weight = {n.removeprefix("self_attn."): u for n, u in layer.items()}
  both = (x @ weight["q_proj.weight"].T).reshape(t, heads, 2 * width)
  q, gate = both[..., :width], both[..., width:]
  k = (x @ weight["k_proj.weight"].T).reshape(t, shared, width)
  v = (x @ weight["v_proj.weight"].T).reshape(t, shared, width)
  eps = text["rms_norm_eps"]
  q = _turned(_norm(q, weight["q_norm.weight"], eps), text, width)
  k = _turned(_norm(k, weight["k_norm.weight"], eps), text, width)
  k, v = (np.repeat(u, heads // shared, 1) for u in (k, v))
  scores = np.einsum("thk,shk->hts", q, k) * width**-0.5
  scores = np.where(np.tri(t, dtype=bool), scores, -np.inf)
  share = np.exp(scores - scores.max(-1, keepdims=True))
  share = share / share.sum(-1, keepdims=True)
  out = np.einsum("hts,shk->thk", share, v) * _sigmoid(gate)
  return out.reshape(t, -1) @ weight["o_proj.weight"].T


def _turned(x, text, width):
  frequency, factor = frequencies(text, width)
  angle = np.outer(np.arange(len(x)), frequency)[:, None]
  half = len(frequency)
  first, second = x[..., :half], x[..., half : 2 * half]
  cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
  turned = (first * cos - second * sin, second * cos + first * sin)
  return np.concatenate([*turned, x[..., 2 * half :]], axis=-1)


def frequencies(text, width):
  """Angles per token of the rotated pairs, and the attention factor."""
  rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
  rope = {key: value for key, value in rope.items() if value is not None}

  def known(key, default):
    value = rope.get(key, text.get(key))
    return default if value is None else value

  base = known("rope_theta", 1e4)
  dim = int(width * known("partial_rotary_factor", 0.25))
  plain = base ** -(np.arange(0, dim, 2) / dim)
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind == "linear":
    return plain / rope["factor"], 1.0
  if kind != "yarn":
    return plain, 1.0
  context = text.get("max_position_embeddings") or 32768
  trained = known("original_max_position_embeddings", context)
  factor = rope.get("factor", context / trained)

  def temperature(weight):
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

  attention = rope.get("attention_factor")
  if attention is None:
    attention = temperature(1)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
      attention = temperature(rope["mscale"])
      attention /= temperature(rope["mscale_all_dim"])
  ends = [
    dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))
    for turns in (rope.get("beta_fast") or 32, rope.get("beta_slow") or 1)
  ]
  if rope.get("truncate", True):
    ends = [math.floor(ends[0]), math.ceil(ends[1])]
  low, high = max(ends[0], 0), min(ends[1], dim - 1)
  high += 0.001 * (low == high)
  ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
  return plain / factor * ramp + plain * (1 - ramp), attention
