"""The ranges that numeric settings have, by name; `offline.option_check` holds values to them.

No number is unbounded: whole ones fit into 64 bits with room for `seed + i`, and fractions into the
float32 that networks calculate with. Light to import, as every file of options does.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt, MinLen

LARGEST = 1e30  # float32 ends at 3.4e38

Seed = Annotated[int, Ge(0), Lt(2**63)]
Count = Annotated[int, Ge(1), Lt(2**31)]
"""Of what there has to be at least one."""
Amount = Annotated[int, Ge(0), Lt(2**53)]
"""Of what there may be none, such as steps."""
Size = Annotated[int, Ge(1), Le(65_536)]
"""Of what is in memory all at once: units, layers, heads, candidates, actions of a chunk."""
Sizes = Annotated[tuple[Size, ...], MinLen(1)]
"""One for each layer."""
Few = Annotated[int, Ge(0), Le(65_536)]
Threads = Annotated[int, Ge(1), Le(1_024)]

Finite = Annotated[float, Ge(-LARGEST), Le(LARGEST)]
NotNegative = Annotated[float, Ge(0), Le(LARGEST)]
Positive = Annotated[float, Gt(0), Le(LARGEST)]
Share = Annotated[float, Ge(0), Le(1)]
Between = Annotated[float, Gt(0), Lt(1)]
"""0 and 1 themselves are left out."""
Step = Annotated[float, Gt(0), Le(1)]
"""The part of a way that is gone at a time."""
Decay = Annotated[float, Ge(0), Lt(1)]
