"""Which states are worth their place, learned online: `Adaptive`.

Read `adaptive` first, then what it is made of: `learning` puts together the
`hazards` (by `cells` and `ages`, by way of `fitting`), which say when a prefix
is asked for again, `regime`, whether they still tell, `demand`, how often it
will be, and `flow`, whose demand a state serves and what it is worth; `leaving`
weighs what has to go, `pages` what that frees; `tree` and `table` remember,
`forgetting` bounds that, `proposals` says where a prompt might keep states, by
`end_offsets` and `start_depth`.
"""

from .adaptive import Adaptive as Adaptive
from .adaptive import Visit as Visit
from .leaving import ALIKE as ALIKE
from .leaving import Freed as Freed
from .leaving import Leaving as Leaving
from .tree import hashes as hashes
