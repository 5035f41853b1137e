"""Devices that are not here: programs are traced and lowered for them."""

import jax

TPUS = ("TPU v5 lite", "TPU v5p", "TPU v6 lite")
HOPPER = "NVIDIA H100 80GB HBM3"
BLACKWELL = "NVIDIA B200"
_PLATFORMS = {HOPPER: ("gpu", 132), BLACKWELL: ("gpu", 148)}


def traced_for(kind):
  """Everything inside is traced as for a device of that kind.

  The mesh that names it has no axes: JAX 0.11 would shard along one.
  """
  platform, cores = _PLATFORMS.get(kind, ("tpu", 1))
  device = jax.sharding.AbstractDevice(
    device_kind=kind, num_cores=cores, platform=platform
  )
  return jax.sharding.use_abstract_mesh(
    jax.sharding.AbstractMesh((), (), abstract_device=device)
  )


def lowered(function, *arguments, kind):
  """The program of a function, or of a jitted one, as text."""
  jitted = function if hasattr(function, "trace") else jax.jit(function)
  platform = "cuda" if kind in _PLATFORMS else "tpu"
  with traced_for(kind):
    traced = jitted.trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text()
