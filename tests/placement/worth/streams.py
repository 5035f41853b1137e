"""Small random streams in which prompts share prefixes in many ways."""

import numpy as np


def conversations(seed, requests=90):
  """Conversations that go on, are cut, restart and share a beginning."""
  random = np.random.default_rng(seed)
  fresh = iter(range(10**6))

  def new(count):
    return [next(fresh) for _ in range(count)]

  system, talks, prompts = new(3), [], []
  for _ in range(requests):
    if len(talks) < 6 or random.random() < 0.15:
      talks.append(system[: random.integers(0, 4)] + new(random.integers(1, 5)))
    talk = talks[random.integers(max(0, len(talks) - 8), len(talks))]
    if random.random() < 0.3 and len(talk) > 3:
      del talk[len(talk) - random.integers(1, 3) :]
    if random.random() < 0.8:
      talk += new(random.integers(1, 4))
    prompts.append(tuple(talk))
  return prompts


def letters(seed, requests=90):
  """Words over two letters: many prompts are prefixes of others, or empty."""
  random = np.random.default_rng(seed)
  sizes = random.integers(0, 12, requests)
  return [tuple(random.integers(0, 2, size).tolist()) for size in sizes]


def regenerated(seed, requests=600):
  """Conversations of which turns are asked again at once, and then gone on."""
  random = np.random.default_rng(seed)
  fresh, talks, prompts = iter(range(10**6)), [[] for _ in range(24)], []
  while len(prompts) < requests:
    talk = talks[random.integers(len(talks))]
    if len(talk) > 40:
      talk.clear()
    talk += [next(fresh) for _ in range(random.integers(2, 6))]
    again = random.integers(2, 9) if random.random() < 0.2 else 0
    prompts += [tuple(talk)] * (1 + again)
  return prompts


def examples(seed, kinds=40):
  """Sets of examples, asked about four times by questions of any length."""
  random, fresh, prompts = np.random.default_rng(seed), iter(range(10**6)), []

  def new(count):
    return [next(fresh) for _ in range(count)]

  system = new(3)
  for _ in range(kinds):
    known = system + new(9)
    prompts += [tuple(known + new(random.integers(1, 9))) for _ in range(4)]
  return prompts


def changed(seed, before=225, others=150, after=120):
  """A dozen prompts again and again; others, thrice each; then the dozen."""
  random, fresh = np.random.default_rng(seed), iter(range(10, 10**6))
  words = [tuple(random.integers(0, 3, 8).tolist()) for _ in range(12)]
  prompts = [words[i] for i in random.integers(0, 12, before)]
  for _ in range(others // 3):
    prompt = tuple(next(fresh) for _ in range(6))
    prompts += [prompt, prompt[:4], prompt[:2]]
  return prompts + [words[i] for i in random.integers(0, 12, after)]
