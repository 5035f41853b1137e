"""The smallest model that a training can be tried on: compiles in seconds."""

from sparse_prefix_jax import ModelConfig, Numerics
from sparse_prefix_jax.layers import Branch, Mamba2Config
from sparse_prefix_jax.workloads.recall.documents import RecallShape
from sparse_prefix_jax.workloads.recall.vocabulary import VOCAB_SIZE

CONFIG = ModelConfig(
  vocab_size=VOCAB_SIZE,
  width=16,
  branches=(
    Branch(Mamba2Config(heads=2, groups=1, head_width=8, state_width=8)),
  ),
  numerics=Numerics(ladder=(8,), chunk=16),
)
STAGES = (RecallShape(tokens=128, facts=5, questions=10),)
