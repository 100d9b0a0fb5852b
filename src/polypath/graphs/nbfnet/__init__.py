"""NBFNet: Bellman-Ford whose sums and products are learnt."""

from polypath.graphs.nbfnet.config import NBFNetConfig
from polypath.graphs.nbfnet.model import NBFNet, with_loops

__all__ = ["NBFNet", "NBFNetConfig", "with_loops"]
