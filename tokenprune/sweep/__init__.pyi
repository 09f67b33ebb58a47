from .config.schema import SweepConfig as SweepConfig
from .config.schema import default_config as default_config
from .config.schema import load_config as load_config
from .config.schema import with_changes as with_changes
from .plan.cells import plan_cells as plan_cells
from .runner import SweepOutcome as SweepOutcome
from .runner import run_sweep as run_sweep
from .store.result_store import SweepStore as SweepStore
