"""Every notebook's parameters, and the stages that they ask for."""

from preflab.experiments.ablations import Ablations
from preflab.experiments.benchmarks import Benchmarks
from preflab.experiments.common_mode import CommonMode
from preflab.experiments.coordination import Coordination
from preflab.experiments.experiment import Parameters
from preflab.experiments.forgetting import Forgetting
from preflab.experiments.g_dynamics import GDynamics
from preflab.experiments.mechanism import Mechanism
from preflab.experiments.objective_map import ObjectiveMap
from preflab.experiments.optimisers import Optimisers
from preflab.experiments.sequential import Sequential
from preflab.experiments.start_here import StartHere

EXPERIMENTS: dict[str, type[Parameters]] = {
    "00_start_here": StartHere,
    "01_sequential_settings": Sequential,
    "02_g_dynamics": GDynamics,
    "03_component_ablations": Ablations,
    "04_coordinated_objectives": Coordination,
    "05_mechanism": Mechanism,
    "06_forgetting_map": Forgetting,
    "07_objective_map": ObjectiveMap,
    "08_optimisers": Optimisers,
    "09_common_mode": CommonMode,
    "90_benchmarks": Benchmarks,
}

__all__ = ["EXPERIMENTS", "Parameters"]
