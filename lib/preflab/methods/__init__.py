"""Every method, by the name that a row of parameters gives it. A method is one module here and one row of its table."""

from preflab.methods.conservative_dpo import ConservativeDPO
from preflab.methods.dpo import DPO
from preflab.methods.dpo_sft import DPOWithSFT
from preflab.methods.dpop import DPOP
from preflab.methods.grpo import GRPO
from preflab.methods.ipo import IPO
from preflab.methods.kto import KTO
from preflab.methods.method import PairMethod, SampleMethod, Weighted
from preflab.methods.orpo import ORPO
from preflab.methods.ppo import PPO
from preflab.methods.rloo import RLOO
from preflab.methods.simpo import SimPO

METHODS: dict[str, type[PairMethod] | type[SampleMethod]] = {
    # from pairs
    "dpo": DPO,
    "dpo_sft": DPOWithSFT,
    "dpop": DPOP,
    "conservative_dpo": ConservativeDPO,
    "ipo": IPO,
    "simpo": SimPO,
    "kto": KTO,
    "orpo": ORPO,
    # from their own samples
    "ppo": PPO,
    "grpo": GRPO,
    "rloo": RLOO,
}

__all__ = ["METHODS", "PairMethod", "SampleMethod", "Weighted"]
