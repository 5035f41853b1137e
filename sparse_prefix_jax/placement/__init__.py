"""Where to keep states: pure functions of weights and costs, not of models."""

from .conditional import Conditional as Conditional
from .conditional import Features as Features
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
from .overlap import OverlapHistogram as OverlapHistogram
from .overlap import observe as observe
from .planner import CHUNK as CHUNK
from .planner import POLICIES as POLICIES
from .planner import PlacementPolicy as PlacementPolicy
from .planner import Planner as Planner
from .priced import CommonPrice as CommonPrice
from .priced import common_price as common_price
from .priced import solve_priced as solve_priced
from .problem import Placement as Placement
