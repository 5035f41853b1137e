"""The golden checkpoints of families, and small models of each."""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from sparse_prefix_jax import HybridDecoder, load_pretrained, preset
from sparse_prefix_jax.models.published import PUBLISHED

GOLDEN = pathlib.Path(__file__).parent / "golden_families"
CASES = sorted(path.name for path in GOLDEN.iterdir())
TINY = [name for name, c in PUBLISHED.items() if c.vocab_size == 512]
CHOICES = {"ladder": (4,), "chunk": 16, "max_length": 256, "head_rows": 64}
CHOICES |= {"dtype": "float32"}


def load(directory, **changes):
  """The model of a directory, with small programs."""
  return load_pretrained(directory, **(CHOICES | changes))[0]


def copy(tmp_path, case, edit=lambda tensors: tensors, **changes):
  """A directory with other tensors, and keys of its config.json replaced."""
  directory = tmp_path / case
  directory.mkdir()
  for name in ("config.json", "model.safetensors"):
    shutil.copy(GOLDEN / case / name, directory / name)
  config = json.loads((directory / "config.json").read_text()) | changes
  (directory / "config.json").write_text(json.dumps(config))
  path = directory / "model.safetensors"
  save_file(edit(load_file(path)), path)
  return directory


@functools.cache
def _weights(name):
  """Random parameters of a small model; norms, biases and decays count."""
  model = HybridDecoder(preset(name), rngs=nnx.Rngs(0))
  random = np.random.default_rng(0)

  def moved(x):
    if x.ndim > 1:
      return x
    return x + jnp.asarray(0.1 * random.normal(size=x.shape), x.dtype)

  return jax.tree.map(moved, nnx.state(model))


@functools.cache
def tiny(name, **changes):
  """A small random model of a family, of one set of weights for each.

  They are made once and cast, since each shape that is drawn is compiled.
  """
  config = preset(name, **changes)
  model = nnx.eval_shape(lambda: HybridDecoder(config, rngs=nnx.Rngs(0)))
  cast = jax.tree.map(
    lambda asked, x: jnp.asarray(x, asked.dtype),
    nnx.state(model),
    _weights(name),
  )
  nnx.update(model, cast)
  return model
