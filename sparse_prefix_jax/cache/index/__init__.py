"""Prefix index on the host: which states and pages exist, for which tokens.

Trees, eviction and accounting of abstract slots and pages; no arrays.
"""

from .budget import Budget as Budget
from .budget import CapacityError as CapacityError
from .budget import Lease as Lease
from .eviction import EVICTIONS as EVICTIONS
from .eviction import Eviction as Eviction
from .eviction import EvictionRule as EvictionRule
from .eviction import Lru as Lru
from .eviction import Ranked as Ranked
from .eviction import Worth as Worth
from .eviction import eviction_for as eviction_for
from .eviction import eviction_name as eviction_name
from .eviction import placement_for as placement_for
from .eviction import register_eviction as register_eviction
from .eviction import rule_for as rule_for
from .eviction import unregister_eviction as unregister_eviction
from .index import PrefixIndex as PrefixIndex
from .results import Grown as Grown
from .results import IndexStats as IndexStats
from .results import Match as Match
from .results import Pin as Pin
from .results import Reason as Reason
from .results import Renumbering as Renumbering
from .tokens import common_blocks as common_blocks
from .tokens import token_blocks as token_blocks
from .tree import Entry as Entry
from .tree import State as State
