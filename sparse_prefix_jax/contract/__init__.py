"""The contract, tried out: random schedules against cold runs, bit by bit.

For users too: run it on the device and the configuration that you serve.
"""

from sparse_prefix_jax.contract.bits import ContractError as ContractError
from sparse_prefix_jax.contract.bits import differing_bits as differing_bits
from sparse_prefix_jax.contract.bits import poison as poison
from sparse_prefix_jax.contract.cold_runs import Cold as Cold
from sparse_prefix_jax.contract.cold_runs import ColdRuns as ColdRuns
from sparse_prefix_jax.contract.findings import Finding as Finding
from sparse_prefix_jax.contract.findings import check as check
from sparse_prefix_jax.contract.schedule import Schedule as Schedule
from sparse_prefix_jax.contract.traffic import Answers as Answers
from sparse_prefix_jax.contract.traffic import Traffic as Traffic
