"""Hypergradient engines, one per file."""

from bilevel_core.engines.checkpointed import Checkpointed
from bilevel_core.engines.direct import Direct
from bilevel_core.engines.exact import Exact
from bilevel_core.engines.forward import Forward
from bilevel_core.engines.implicit import Implicit
from bilevel_core.engines.reverse import Reverse
from bilevel_core.engines.spectral import Spectral
from bilevel_core.engines.truncated import Truncated
from bilevel_core.engines.unrolled import Unrolled

__all__ = [
    "Checkpointed",
    "Direct",
    "Exact",
    "Forward",
    "Implicit",
    "Reverse",
    "Spectral",
    "Truncated",
    "Unrolled",
]
