"""Weights on several devices: whole on each, or refused."""

import json
import os
import pathlib
import subprocess
import sys

_TWO_DEVICES = "--xla_force_host_platform_device_count=2"
_PROGRAM = """
import json
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from sparse_prefix_jax import HybridDecoder, PrefixCache, prefill, preset
from sparse_prefix_jax.contract import ColdRuns, check

mesh = Mesh(np.array(jax.devices()), ("x",))
fields = {"chunk": 16, "ladder": (4,), "max_length": 128}
model = HybridDecoder(preset("tiny", **fields), rngs=nnx.Rngs(0))


def put(spec):
  def leaf(x):
    even = x.ndim == 2 and x.shape[0] % 2 == 0 and x.shape[1] % 2 == 0
    return jax.device_put(x, NamedSharding(mesh, spec if even else P()))
  return jax.tree.map(leaf, model)


def new_cache(model):
  return PrefixCache(model, capacity="2MiB", placement="last", state_share=0.4)


def said(call):
  try:
    call()
  except ValueError as error:
    return str(error)


def bits(model):
  cache = new_cache(model)
  for _ in range(2):
    out = prefill(model, cache, [list(range(50))])
    cache.release(out.sequences)
  return out.reports[0].resumed, out.logits[0].tobytes().hex()


def scan(part):
  carry = model.initialize_carry(1, 64)
  return part.scan(carry, np.zeros((1, 5), np.int32))


def cell(part):
  carry = model.initialize_carry(1, 64)
  return part.cell(carry, np.zeros(1, np.int32))


cache, rows, columns = new_cache(model), put(P("x")), put(P(None, "x"))
second = jax.device_put(model, jax.devices()[1])
print(json.dumps({
  "refused": [said(call) for call in (
    lambda: new_cache(rows),
    lambda: new_cache(columns),
    lambda: prefill(rows, cache, [[1]]),
    lambda: cache.replace_weights(columns),
    lambda: ColdRuns(rows, 64),
    lambda: check(rows, lives=0),
    lambda: scan(rows),
    lambda: cell(columns),
  )],
  "traced": jax.eval_shape(scan, rows).y.shape,
  "bits": [bits(m) for m in (model, put(P()), second)],
}))
"""


def test_weights_in_parts_are_refused_and_whole_ones_keep_their_bits():
  """Products in parts add up otherwise, so a state would have other bits."""
  done = subprocess.run(
    [sys.executable, "-c", _PROGRAM],
    env={
      **os.environ,
      "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {_TWO_DEVICES}",
      "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert len(found["refused"]) == 8
  for said in found["refused"]:
    assert said and "is divided over 2 devices" in said
    assert "replicated" in said and said.endswith(".") and "\n" not in said
  assert found["traced"] == [1, 5, 64]
  assert found["bits"][0][0] == 48
  assert found["bits"] == [found["bits"][0]] * 3
