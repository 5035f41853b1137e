"""What sampling means, in float64 NumPy: probabilities of the next id."""

import numpy as np


def adjusted_logits(logits, prompt=(), decoded=(), allowed=None, **fields):
  """Logits after mask, bias and penalties. [vocab]"""
  out = np.array(logits, np.float64)
  for token, value in fields.get("logit_bias", {}).items():
    out[token] += value
  if allowed is not None:
    out[~np.asarray(allowed)] = -np.inf
  repetition = fields.get("repetition_penalty", 1.0)
  for token in {*prompt, *decoded}:
    out[token] = out[token] * repetition ** (-1 if out[token] > 0 else 1)
  for token in set(decoded):
    out[token] -= fields.get("presence_penalty", 0.0)
    times = list(decoded).count(token)
    out[token] -= times * fields.get("frequency_penalty", 0.0)
  return out


def descending(logits):
  """Ids from the most probable on, of equal ones the lowest first."""
  return sorted(range(len(logits)), key=lambda i: (-logits[i], i))


def kept(scaled, top_k=0, top_p=1.0, min_p=0.0):
  """The ids that are kept, as bools. [vocab]"""
  order = descending(scaled)
  order = order[: top_k or len(order)]
  weights = np.exp(np.asarray(scaled, np.float64)[order])
  reached = np.cumsum(weights) / weights.sum()
  count = 1 + int(np.sum(reached[:-1] < top_p)) if top_p < 1 else len(order)
  out = np.zeros(len(scaled), bool)
  out[order[:count]] = True
  return out & (np.exp(scaled - np.max(scaled)) >= min_p)


def probabilities(logits, prompt=(), decoded=(), allowed=None, **fields):
  """What each id is drawn with. [vocab]"""
  out = adjusted_logits(logits, prompt, decoded, allowed, **fields)
  out = (out - out.max()) / fields["temperature"]
  rules = {k: fields[k] for k in ("top_k", "top_p", "min_p") if k in fields}
  weights = np.where(kept(out, **rules), np.exp(out), 0)
  return weights / weights.sum()


def log_softmax(logits):
  """Log probabilities. [vocab]"""
  out = np.asarray(logits, np.float64) - np.max(logits)
  return out - np.log(np.exp(out).sum())
