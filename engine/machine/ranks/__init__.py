"""Several processes that work on one run: which of them this one is, and what they tell one another.

Everything else asks here. A process by itself is rank 0 of 1: nothing is sent, and ``torch.distributed`` is not imported.
"""

from engine.machine.ranks.group import LostRank as LostRank
from engine.machine.ranks.group import added_up as added_up
from engine.machine.ranks.group import apart as apart
from engine.machine.ranks.group import by_first as by_first
from engine.machine.ranks.group import called_by_first as called_by_first
from engine.machine.ranks.group import count as count
from engine.machine.ranks.group import gathered as gathered
from engine.machine.ranks.group import heard as heard
from engine.machine.ranks.group import is_first as is_first
from engine.machine.ranks.group import is_read as is_read
from engine.machine.ranks.group import join as join
from engine.machine.ranks.group import leave as leave
from engine.machine.ranks.group import mine as mine
from engine.machine.ranks.group import missed as missed
from engine.machine.ranks.group import number as number
from engine.machine.ranks.group import of_first as of_first
from engine.machine.ranks.group import remember as remember
from engine.machine.ranks.group import remembered as remembered
from engine.machine.ranks.group import same as same
from engine.machine.ranks.group import several as several
from engine.machine.ranks.group import shares as shares
from engine.machine.ranks.group import total as total
from engine.machine.ranks.group import when_lost as when_lost
from engine.machine.ranks.place import Place as Place
from engine.machine.ranks.place import place as place
