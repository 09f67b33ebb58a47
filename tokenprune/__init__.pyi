from .budget import Budget as Budget
from .engine import pruned as pruned
from .hookspecs import hookimpl as hookimpl
from .plugins import load_host as load_host
from .pruner import PruneRecord as PruneRecord

__version__: str
