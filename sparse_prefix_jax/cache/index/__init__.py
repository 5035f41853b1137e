"""Prefix index on the host: which states and pages exist, for which tokens.

Tree, policies and accounting of abstract slots and pages; no arrays.
"""

from .budget import Budget as Budget
from .budget import CapacityError as CapacityError
from .budget import Lease as Lease
from .index import PrefixIndex as PrefixIndex
from .policies import POLICIES as POLICIES
from .policies import EvictionPolicy as EvictionPolicy
from .policies import Fifo as Fifo
from .policies import Lru as Lru
from .results import Inserted as Inserted
from .results import Match as Match
from .results import Pin as Pin
from .results import Reason as Reason
from .results import Stats as Stats
from .tokens import token_blocks as token_blocks
from .tree import Entry as Entry
