"""A hybrid token by token in float64, for automatic differentiation.

It takes the weights of a model and imports nothing of ours. What it computes is
the formula: no chunks, no pages, no groups.
"""

import jax
import jax.numpy as jnp


def run(branches, x, slots, pages, position):
  """Runs one request through pairs of pre-normed branches.

  `x` is [t d]; `slots` holds the state of each branch; `pages` its keys and
  values [tokens hkv k], of which the first `position` are held. Returns what
  comes out, and for each branch the states before and after every token, or
  all keys and values.
  """
  kept = []
  for branch, slot, held in zip(branches, slots, pages, strict=True):
    normed = _norm(x, branch.pre[...], branch.config.pre.eps)
    kind = branch.config.sub.kind
    if kind == "gated_delta_net":
      out, after = gated_delta_net(branch.sub, normed, *slot)
    elif kind == "attention":
      out, after = attention(branch.sub, normed, *held, position)
    else:
      out, after = swiglu(branch.sub, normed), ()
    x, kept = x + out, [*kept, after]
  return x, kept


def _norm(x, weight, eps):
  return _unit(x, eps) * (1 + weight)


def _unit(x, eps):
  return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + eps)


def swiglu(layer, x):
  gate, up = x @ layer.gate[...].T, x @ layer.up[...].T
  return (jax.nn.silu(gate) * up) @ layer.down[...].T


def gated_delta_net(layer, x, state, past):
  """Outputs, and the states and windows before and after every token."""
  c, w = layer.config, layer.config.window
  mixed = jnp.concatenate([past, x @ layer.in_qkv[...].T])
  taps = [mixed[i : i + len(x)] * layer.conv[...][i] for i in range(w)]
  keys = c.key_heads * c.key_width
  q, k, v = jnp.split(jax.nn.silu(sum(taps)), [keys, 2 * keys], axis=1)
  q, k = (u.reshape(-1, c.key_heads, c.key_width) for u in (q, k))
  q, k = (u / jnp.sqrt((u**2).sum(-1, keepdims=True) + 1e-6) for u in (q, k))
  times = c.value_heads // c.key_heads
  q, k = (jnp.repeat(u, times, axis=1) for u in (q * c.key_width**-0.5, k))
  v = v.reshape(-1, c.value_heads, c.value_width)
  decay, beta = jnp.split(x @ layer.in_decay_beta[...].T, 2, axis=1)
  rate = jax.nn.softplus(decay + layer.decay_bias[...])
  decay = jnp.exp(-jnp.exp(layer.log_rate[...]) * rate)
  beta = jax.nn.sigmoid(beta)

  def token(state, step):
    q, k, v, decay, beta = step
    state = state * decay[:, None, None]
    new = (v - jnp.einsum("hkv,hk->hv", state, k)) * beta[:, None]
    state = state + k[:, :, None] * new[:, None]
    return state, (state, jnp.einsum("hkv,hk->hv", state, q))

  _, (states, out) = jax.lax.scan(token, state, (q, k, v, decay, beta))
  out = _unit(out, c.eps) * layer.norm[...]
  out = out * jax.nn.silu((x @ layer.in_gate[...].T).reshape(out.shape))
  states = jnp.concatenate([state[None], states])
  windows = jnp.stack([mixed[t : t + w - 1] for t in range(len(x) + 1)])
  return out.reshape(len(x), -1) @ layer.out[...].T, (states, windows)


def attention(layer, x, keys, values, position):
  """Outputs, and the keys and values of all tokens."""
  c = layer.config
  both = (x @ layer.in_query_gate[...].T).reshape(-1, c.heads, 2 * c.head_width)
  q, gate = jnp.split(both, 2, axis=2)
  k = (x @ layer.in_key[...].T).reshape(-1, c.kv_heads, c.head_width)
  v = (x @ layer.in_value[...].T).reshape(-1, c.kv_heads, c.head_width)
  q = _norm(q, layer.query_norm[...], c.eps)
  k = _norm(k, layer.key_norm[...], c.eps)
  q, k = (_turned(u, position, c.rotary_width, c.rope_theta) for u in (q, k))
  keys = jnp.concatenate([keys[:position], k])
  values = jnp.concatenate([values[:position], v])
  times = c.heads // c.kv_heads
  all_keys, all_values = (jnp.repeat(u, times, axis=1) for u in (keys, values))
  scores = jnp.einsum("thk,shk->hts", q, all_keys) * c.head_width**-0.5
  row = position + jnp.arange(len(x))[:, None]
  seen = jnp.arange(len(keys))[None] <= row
  share = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
  out = jnp.einsum("hts,shk->thk", share, all_values) * jax.nn.sigmoid(gate)
  return out.reshape(len(x), -1) @ layer.out[...].T, (keys, values)


def _turned(x, position, width, theta):
  half = width // 2
  frequency = theta ** -(2 * jnp.arange(half) / width)
  angle = jnp.outer(position + jnp.arange(len(x)), frequency)[:, None]
  first, second = x[..., :half], x[..., half:width]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  turned = first * cos - second * sin, second * cos + first * sin
  return jnp.concatenate([*turned, x[..., width:]], axis=-1)
