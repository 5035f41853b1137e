"""Requests to packed chunks and back, for the tests of every operation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sparse_prefix_jax.kernels.chunks import CARRY, NONE, ZERO, Chunks


@dataclasses.dataclass(frozen=True)
class Job:
  """One request of a call: its tokens are [start, start + length).

  `writes` gives the slot by chunk (0, 1, ... of this call).
  """

  length: int
  read: int = ZERO
  writes: dict[int, int] = dataclasses.field(default_factory=dict)
  start: int = 0


def count(job, c):
  """Packed chunks of a job."""
  return -(-job.length // c)


def chunks_of(jobs, n, c):
  """`Chunks` of the jobs in order, then inactive ones, n in all."""
  fields = np.zeros((5, n), np.int32)
  read, write, length, position, request = fields
  read[:], write[:] = CARRY, NONE
  first = 0
  for row, job in enumerate(jobs):
    for i in range(count(job, c)):
      read[first] = CARRY if i else job.read
      write[first] = job.writes.get(i, NONE)
      length[first] = min(c, job.length - i * c)
      position[first] = job.start + i * c
      request[first] = row
      first += 1
  assert first <= n
  return Chunks(*map(jnp.asarray, fields))


def pack(jobs, arrays, n, c, padding=np.nan):
  """Per-token arrays [t ...], one per job, to [n c ...]; the rest `padding`."""
  packed = np.full((n * c, *arrays[0].shape[1:]), padding, arrays[0].dtype)
  first = 0
  for job, array in zip(jobs, arrays, strict=True):
    packed[first : first + job.length] = array
    first += count(job, c) * c
  return jnp.asarray(packed.reshape(n, c, *packed.shape[1:]))


def unpack(jobs, packed, c):
  """[n c ...] to the real tokens [t ...] of each job."""
  flat = np.asarray(packed).reshape(-1, *packed.shape[2:])
  parts, first = [], 0
  for job in jobs:
    parts.append(flat[first : first + job.length])
    first += count(job, c) * c
  return parts


def bits(x):
  """The bytes of an array, or of every leaf: equal bits, not values."""
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(x)]


def poisoned_pool(shape, dtype=np.float32):
  """A pool in which every other slot is NaN and the rest is -0.0."""
  pool = np.full(shape, np.nan, dtype)
  pool[1::2] = -0.0
  return pool
