"""The gradient of lattice attention over pages, for chunks and for rows.

The forward pass is that of `xla`, whose loop over blocks of keys has no reverse
mode. The backward pass gathers the pages of a chunk's request and computes its
weights again; what it finds for keys and values is added up page by page. A
page that the call wrote hands its sum to the tokens that were written.
"""

import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from sparse_prefix_jax.kernels.lattice_attention import vjp, xla
from sparse_prefix_jax.kernels.lattice_attention.xla import AttentionOptions


class _Queries(NamedTuple):
  """Queries that stand together, and what they see; e is c or 1."""

  q: Float[Array, "n e h k"]
  position: Int32[Array, "n"]
  end: Int32[Array, "n"]
  pages: Int32[Array, "n pages"]
  d_out: Float[Array, "n e h v"]


_Index: TypeAlias = Array | tuple[Array, Array]


def attend_chunks(*arrays: Any, **options: Any) -> tuple[Array, Any]:
  """`xla.attend_chunks`, with a gradient in all but the integers."""
  results: Any = _chunks(AttentionOptions(**options), *arrays)
  return results


def attend_rows(*arrays: Any, **options: Any) -> tuple[Array, Any]:
  """`xla.attend_rows`, with a gradient in all but the integers."""
  results: Any = _rows(AttentionOptions(**options), *arrays)
  return results


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunks(options: AttentionOptions, *arrays: Any) -> tuple[Array, Any]:
  return xla.attend_chunks(*arrays, options=options)


def _chunks_forward(options: AttentionOptions, *arrays: Any) -> tuple[Any, Any]:
  q, tokens, _, chunks, page_table = arrays
  out, pools = xla.attend_chunks(*arrays, options=options)
  return (out, pools), (q, tokens, pools, chunks, page_table)


def _chunks_backward(
  options: AttentionOptions, kept: Any, cotangents: Any
) -> tuple[Any, ...]:
  q, tokens, pools, chunks, page_table = kept
  size, active = q.shape[1], chunks.length > 0
  real = jnp.arange(size, dtype=jnp.int32)[None] < chunks.length[:, None]
  # Padding may hold anything: it is selected away, and so is its gradient.
  real = real[:, :, None, None]
  queries = _Queries(
    q=jnp.where(real, q, jnp.zeros_like(q)),
    position=chunks.position,
    end=jnp.where(active, chunks.position + chunks.length, 0),
    pages=page_table[chunks.request],
    d_out=jnp.where(real, cotangents[0], jnp.zeros_like(cotangents[0])),
  )
  d_q, sums = _pull(options, queries, pools)
  own = page_table[chunks.request, chunks.position // size]
  own = jnp.where(active, own, pools[0].shape[0])
  d_written = _unwrite(own, cotangents[1], sums, tokens)
  return jnp.where(real, d_q, jnp.zeros_like(d_q)), *d_written, None, None


_chunks.defvjp(_chunks_forward, _chunks_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(options: AttentionOptions, *arrays: Any) -> tuple[Array, Any]:
  return xla.attend_rows(*arrays, options=options)


def _rows_forward(options: AttentionOptions, *arrays: Any) -> tuple[Any, Any]:
  q, tokens, _, position, active, page_table = arrays
  out, pools = xla.attend_rows(*arrays, options=options)
  return (out, pools), (q, tokens, pools, position, active, page_table)


def _rows_backward(
  options: AttentionOptions, kept: Any, cotangents: Any
) -> tuple[Any, ...]:
  q, tokens, pools, position, active, page_table = kept
  real = active[:, None, None]
  d_out = jnp.where(real, cotangents[0], jnp.zeros_like(cotangents[0]))
  queries = _Queries(
    q=jnp.where(real, q, jnp.zeros_like(q))[:, None],
    position=position,
    end=jnp.where(active, position + 1, 0),
    pages=page_table,
    d_out=d_out[:, None],
  )
  d_q, sums = _pull(options, queries, pools)
  size = pools[0].shape[1]
  page = page_table[jnp.arange(q.shape[0], dtype=jnp.int32), position // size]
  page = jnp.where(active, page, pools[0].shape[0])
  index = page, position % size
  d_written = _unwrite(index, cotangents[1], sums, tokens)
  d_q = jnp.where(real, d_q[:, 0], jnp.zeros_like(q))
  return d_q, *d_written, None, None, None


_rows.defvjp(_rows_forward, _rows_backward)


def _pull(
  options: AttentionOptions, queries: _Queries, pools: Any
) -> tuple[Array, tuple[Array, ...]]:
  """The gradient of queries, and that of all pages, summed in float32."""
  size = pools[0].shape[1]
  reach = _reach(options.window, size, queries.pages.shape[1])

  def one(sums: Any, x: _Queries) -> tuple[Any, Array]:
    first = jnp.maximum(x.position // size - reach + 1, 0)
    pages = lax.dynamic_slice_in_dim(x.pages, first, reach)
    held = first * size + jnp.arange(reach * size, dtype=jnp.int32) < x.end
    held = held[:, None, None]

    def tokens(pool: Array) -> Array:
      flat = pool[pages].reshape(-1, *pool.shape[2:])
      return jnp.where(held, flat, jnp.zeros_like(flat))

    def attend(q: Array, *kept: Array) -> Array:
      latent = options.value_width is not None
      values = kept[0][..., : options.value_width] if latent else kept[1]
      return vjp.attend_chunk(
        q,
        kept[0],
        values,
        position=x.position - first * size,
        window=options.window,
        precision=options.precision,
      )

    _, pull = jax.vjp(attend, x.q, *map(tokens, pools))
    d_q, *d_tokens = pull(x.d_out)

    def add(total: Array, d: Array) -> Array:
      d = jnp.where(held, d.astype(jnp.float32), 0.0)
      return total.at[pages].add(d.reshape(-1, *total.shape[1:]))

    return tuple(map(add, sums, d_tokens)), d_q

  zeros = tuple(jnp.zeros(pool.shape, jnp.float32) for pool in pools)
  sums, d_q = lax.scan(one, zeros, queries)
  return d_q, sums


def _reach(window: int | None, size: int, pages: int) -> int:
  """Pages that end with a query's own and hold all that it may see."""
  if window is None:
    return pages
  return min((window + size - 2) // size + 1, pages)


def _unwrite(
  index: _Index, d_pools: Any, sums: Any, written: Any
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
  """Gradients of what was written, then those of the pools before it.

  An index past the end was dropped: nothing was written there.
  """
  totals = [d + s.astype(d.dtype) for d, s in zip(d_pools, sums)]
  d_written = tuple(
    total.at[index].get(mode="fill", fill_value=0).astype(x.dtype)
    for total, x in zip(totals, written)
  )
  before = (total.at[index].set(0, mode="drop") for total in totals)
  return d_written, tuple(before)
