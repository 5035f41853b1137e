"""What no policy can exceed: certified bounds for states and for bytes.

`dual` lowers a bound by prices; `of_states` and `of_bytes` say which states a
request could use, and what they take.
"""

from .dual import Bound as Bound
from .of_bytes import hindsight_of_bytes as hindsight_of_bytes
from .of_bytes import upper_bound_of_bytes as upper_bound_of_bytes
from .of_states import hindsight as hindsight
from .of_states import intervals_of as intervals_of
from .of_states import upper_bound as upper_bound
from .uses import Passage as Passage
