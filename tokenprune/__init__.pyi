from .budget import Budget as Budget
from .checkpoints.loaded_model import LoadedModel as LoadedModel
from .checkpoints.loading import load_model as load_model
from .engine.pruning import pruned as pruned
from .evaluation.evaluate import evaluate as evaluate
from .hookspecs import hookimpl as hookimpl
from .plugins import list_pruners as list_pruners
from .plugins import load_host as load_host
from .pruner import get_pruner as get_pruner
from .record import PruneRecord as PruneRecord
from .sweep.runner import run_sweep as run_sweep

__version__: str
