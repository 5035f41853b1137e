"""Where to keep states: pure functions of weights and costs, not of models."""

from .conditional import Conditional as Conditional
from .dynamic_program import solve_placement as solve_placement
from .heuristics import HEURISTICS as HEURISTICS
from .heuristics import balanced as balanced
from .heuristics import block as block
from .heuristics import dyadic as dyadic
from .heuristics import last as last
from .heuristics import no_cache as no_cache
from .heuristics import sqrt as sqrt
from .inputs import linear_cost as linear_cost
from .inputs import quadratic_cost as quadratic_cost
from .mixture import Features as Features
from .mixture import Mixture as Mixture
from .overlap import OverlapHistogram as OverlapHistogram
from .overlap import observe as observe
from .planner import Planner as Planner
from .policy import DEFAULT_CHUNK as DEFAULT_CHUNK
from .policy import PLACEMENTS as PLACEMENTS
from .policy import SHARED as SHARED
from .policy import PlacementPolicy as PlacementPolicy
from .priced import CommonPrice as CommonPrice
from .priced import Steps as Steps
from .priced import common_price as common_price
from .priced import solve_priced as solve_priced
from .problem import Placement as Placement
