"""Replay of request streams against policies, without device arrays.

Pictures are drawn by `replay_plots`, which is not imported here: it needs
matplotlib.
"""

from sparse_prefix_jax.cache.index import EVICTIONS as EVICTIONS

from .capacity import Capacity as Capacity
from .capacity import parse_capacity as parse_capacity
from .meanings import meanings_of as meanings_of
from .model_sizes import ModelSizes as ModelSizes
from .outcomes import Outcome as Outcome
from .paper_rules import Decision as Decision
from .paper_rules import Lookup as Lookup
from .paper_rules import look_up as look_up
from .paper_rules import replay_decisions as replay_decisions
from .report import SimulationReport as SimulationReport
from .report import write_json as write_json
from .simulation import default_placement as default_placement
from .simulation import simulate as simulate
from .stretches import Stretch as Stretch
from .stretches import bounds_over_time as bounds_over_time
