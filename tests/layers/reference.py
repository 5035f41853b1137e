"""What the layers must compute, in NumPy and float64; nothing of ours."""

import numpy as np


def wide(x):
  """The array in float64."""
  return np.asarray(x).astype(np.float64)


def sigmoid(x):
  """1 / (1 + e^-x)."""
  return 1 / (1 + np.exp(-x))


def silu(x):
  """x sigmoid(x)."""
  return x * sigmoid(x)


def activation(name, x):
  """What stands between two products, by its name."""
  if name == "silu":
    return silu(x)
  if name == "relu_squared":
    return np.maximum(x, 0) ** 2
  inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
  return 0.5 * x * (1 + np.tanh(inner))


def bias_of(parameter):
  """A bias in float64; zero where there is none."""
  return 0.0 if parameter is None else wide(parameter[...])


def rms(x, eps):
  """x / sqrt(mean(x^2) + eps)."""
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def rotate(x, position, rotary_width, theta):
  """Pairs (i, i + half) as complex numbers, turned by their angle. [t h k]"""
  x, half = wide(x), rotary_width // 2
  frequency = theta ** -(2 * np.arange(half) / rotary_width)
  turn = np.exp(1j * np.outer(position, frequency))[:, None]
  turned = (x[..., :half] + 1j * x[..., half:rotary_width]) * turn
  return np.concatenate(
    [turned.real, turned.imag, x[..., rotary_width:]], axis=-1
  )


def distance(x, expected):
  """|x - expected| / |expected| over the whole array, in the Euclidean norm."""
  assert x.shape == expected.shape
  return np.linalg.norm(wide(x) - expected) / np.linalg.norm(expected)
