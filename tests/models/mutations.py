"""Mutations of tiny checkpoints: one thing is changed in one file.

A mutation is a function of its number alone. What a directory is worth after
it, the tests say: one sentence, or the logits of an independent reader.
"""

import json
import math

import ml_dtypes
import numpy as np

from tests.models.tiny_checkpoint import (
  quantized_fp8,
  quantized_int8,
  tiny_config,
  tiny_tensors,
  write,
)

INDEX = "model.safetensors.index.json"
_DEEP = json.loads("[" * 400 + "]" * 400)
VALUES = [
  *(None, True, False, 0, 1, -1, 2, 3, 4, 8, 16, 24, 32, 64, 2**31, 10**8),
  *(0.5, 0.25, 1.0, 2.0, -3.5, 1e-6, 1e-3, 1e-300, 1e300, math.nan, math.inf),
  *(10**400, "", "x", "default", "linear", "yarn", "mrope", "float32", "F32"),
  *("bfloat16", "silu", "full_attention", "model.norm.weight", "a\nb", "\0"),
  *([], [1], [0, 4], [16, 16], ["linear_attention"] * 2, {}, {"a": 1}, _DEEP),
]
"""What may stand where something else stood."""


def _flat():
  config = tiny_config()
  return config, tiny_tensors(config), {}


def _wrapped():
  text = tiny_config(tie_word_embeddings=True, dtype="bfloat16")
  tensors = {
    name.replace("model.", "model.language_model."): value.astype(
      ml_dtypes.bfloat16
    )
    for name, value in tiny_tensors(text, 1).items()
  }
  zeros = np.zeros((2, 2), ml_dtypes.bfloat16)
  beside = {"mtp.fc.weight": zeros, "model.visual.patch.weight": zeros}
  config = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "image_token_id": 30,
    "model_type": "qwen3_5",
    "text_config": text,
    "tie_word_embeddings": True,
  }
  return config, tensors | beside, {"shards": 3}


def _old():
  """Keys of older files: an interval of layers, yarn beside its base."""
  config = tiny_config(
    layer_types=None,
    full_attention_interval=2,
    rope_parameters=None,
    rope_theta=1e6,
    partial_rotary_factor=1.0,
    rope_scaling={
      "type": "yarn",
      "factor": 4.0,
      "original_max_position_embeddings": 32,
      "beta_fast": 8,
    },
  )
  return config, tiny_tensors(config | tiny_kinds(), 2), {"shards": 2}


def tiny_kinds():
  """The kinds of layers that an interval of 2 means."""
  return {"layer_types": tiny_config()["layer_types"]}


def _quantized(scheme, quantize, suffix):
  config = tiny_config(quantization_config=scheme)
  tensors = tiny_tensors(config, 3)
  wide = [n for n in tensors if "mlp." in n or "_attn.out_proj" in n]
  for name in wide:
    stored, scale = quantize(tensors[name])
    tensors |= {name: stored, name + suffix: scale}
  return config, tensors, {}


def _fp8():
  scheme = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [10, 6],
    "modules_to_not_convert": ["lm_head"],
  }
  return _quantized(scheme, lambda w: quantized_fp8(w, (10, 6)), "_scale_inv")


def _int8():
  scheme = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
      "group_0": {
        "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}
      }
    },
  }
  return _quantized(scheme, quantized_int8, "_scale")


BASES = (_flat, _wrapped, _old, _fp8, _int8)
"""Makers of configuration, tensors and options of `write`."""


def write_base(directory, number):
  """Writes one of BASES as it is, and returns the directory."""
  config, tensors, options = BASES[number % len(BASES)]()
  return write(directory, config, tensors, **options)


def mutate(directory, seed):
  """Writes a base and changes one thing in it.

  Args:
    directory: A new folder.
    seed: The number of the mutation.

  Returns:
    What was done, in words.
  """
  write_base(directory, seed)
  draw = np.random.default_rng(seed)
  files = sorted(directory.glob("*.safetensors"))
  places = ["config", "config", "header"]
  if (directory / INDEX).exists():
    places.append("index")
  place = places[draw.integers(len(places))]
  if place == "header":
    return _mutate_header(files[draw.integers(len(files))], draw)
  path = directory / ("config.json" if place == "config" else INDEX)
  if draw.random() < 0.15:
    path.write_bytes(_mutate_bytes(path.read_bytes(), draw))
    return f"bytes of {path.name}"
  value = json.loads(path.read_text())
  done = _mutate_object(value, draw)
  path.write_text(json.dumps(value))
  return f"{path.name}: {done}"


def _mutate_header(path, draw):
  content = path.read_bytes()
  data = 8 + int.from_bytes(content[:8], "little")
  header, rest = content[8:data], content[data:]
  kind = draw.integers(6)
  if kind == 0:
    length = int(draw.choice([0, 1, data, 2**20, 2**62]))
    path.write_bytes(length.to_bytes(8, "little") + header + rest)
    return f"length of the header is {length}"
  if kind == 1:
    cut = int(draw.integers(len(content)))
    path.write_bytes(content[:cut])
    return f"file cut at {cut}"
  if kind == 2:
    header = _mutate_bytes(header, draw)
    done = "bytes of the header"
  else:
    value = json.loads(header)
    done = (
      _mutate_entry(value, draw) if kind > 3 else _mutate_object(value, draw)
    )
    header = json.dumps(value).encode()
  path.write_bytes(len(header).to_bytes(8, "little") + header + rest)
  return f"{path.name}: {done}"


def _mutate_entry(header, draw):
  """Changes what a header says of a tensor so that it may still be whole."""
  names = [name for name in header if name != "__metadata__"]
  one, other = draw.choice(len(names), 2, replace=False)
  one, other = names[one], names[other]
  kind = draw.integers(4)
  if kind == 0:
    header[one], header[other] = header[other], header[one]
    return f"{one} and {other} exchanged"
  entry = header[one]
  if kind == 1:
    entry["shape"] = entry["shape"][::-1]
    return f"shape of {one} turned"
  if kind == 2:
    entry["dtype"] = str(draw.choice(["F32", "BF16", "F16", "I8", "F8_E4M3"]))
    return f"{one} is {entry['dtype']}"
  header[f"model.{one}"] = header.pop(one)
  return f"{one} has another prefix"


def _mutate_bytes(content, draw):
  """Changes, removes, adds or repeats a few bytes."""
  at, kind = int(draw.integers(len(content))), draw.integers(4)
  size = int(draw.integers(1, 6))
  if kind == 0:
    return content[:at] + draw.bytes(size) + content[at + size :]
  if kind == 1:
    return content[:at] + content[at + size :]
  if kind == 2:
    return content[:at] + draw.bytes(size) + content[at:]
  return content[:at] + content[at : at + 20] + content[at:]


def _mutate_object(value, draw):
  """Changes one key, here or in an object inside."""
  inner = [k for k, v in value.items() if isinstance(v, dict) and v]
  if inner and draw.random() < 0.6:
    key = inner[draw.integers(len(inner))]
    return f"{key}: {_mutate_object(value[key], draw)}"
  keys, kind = list(value), draw.integers(8)
  key = keys[draw.integers(len(keys))]
  other = keys[draw.integers(len(keys))]
  if kind == 0:
    del value[key]
    return f"no {key}"
  if kind == 1:
    value[key], value[other] = value[other], value[key]
    return f"{key} and {other} exchanged"
  if kind == 2:
    name = str(
      draw.choice(["factor", "sliding_window", "num_experts", key * 2])
    )
    value[name] = VALUES[draw.integers(len(VALUES))]
    return f"{name} added"
  if kind == 3 and isinstance(value[key], int | float):
    value[key] = type(value[key])(value[key] * draw.choice([2, 0.5, 3, 10, -1]))
    return f"{key} is {value[key]}"
  value[key] = VALUES[draw.integers(len(VALUES))]
  return f"{key} is {str(value[key])[:40]}"


def change_nothing(directory, seed):
  """Writes a base in another way that means the same.

  Args:
    directory: A new folder.
    seed: The number of the change.

  Returns:
    What was done, in words.
  """
  config, tensors, options = BASES[seed % len(BASES)]()
  draw = np.random.default_rng(seed)
  kind = ("order", "padding", "keys", "shards", "prefix", "metadata")[
    seed // len(BASES) % 6
  ]
  if kind == "order":
    config = _shuffled(config, draw)
    tensors = {n: tensors[n] for n in draw.permutation(list(tensors))}
  if kind == "keys":
    config |= {"_name_or_path": "x", "use_cache": bool(draw.integers(2))}
    config |= {"sliding_window": None, "temperature": float(draw.random())}
    config |= {"id2label": {"0": "a"}, "unsloth_version": "1"}
  if kind == "shards":
    options = {"shards": int(draw.integers(2, 6)), "stem": f"part{seed}"}
  if kind == "prefix":
    new = str(draw.choice(["", "module.model.", "base_model.model.model."]))
    tensors = {
      new + n if n.startswith("layers.") else n: value
      for n, value in (
        (n.replace("model.language_model.", "").removeprefix("model."), v)
        for n, v in tensors.items()
      )
    }
  write(directory, config, tensors, **options)
  if kind in ("padding", "metadata"):
    for path in directory.glob("*.safetensors"):
      _rewrite_header(path, kind, draw)
  return kind


def _shuffled(value, draw):
  """The same object with the keys of every object in another order."""
  if not isinstance(value, dict):
    return value
  keys = draw.permutation(list(value))
  return {str(key): _shuffled(value[key], draw) for key in keys}


def _rewrite_header(path, kind, draw):
  """Pads a header, or says something else in its metadata."""
  content = path.read_bytes()
  data = 8 + int.from_bytes(content[:8], "little")
  header = json.loads(content[8:data])
  if kind == "metadata":
    header["__metadata__"] = {"format": "pt", "made": "today"}
    header = {name: header[name] for name in draw.permutation(list(header))}
  text = json.dumps(header).encode() + b" " * int(draw.integers(1, 99))
  path.write_bytes(len(text).to_bytes(8, "little") + text + content[data:])
