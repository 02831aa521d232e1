"""The random numbers of a training step, which do not depend on the steps before."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from gmm_anomaly.data.stream import seed_generators

# Of the numbers that seed a step; a stream's images have another.
STEPS = 1


class StepSeeds(HookBase):
    """Seeds Python, numpy and torch before each step by the run's seed, the rank and the iteration.

    So dropout, drop path and sampled losses of iteration ``k`` are the same whether the run was interrupted
    before or not, whatever evaluations drew in between, and on every rank, though checkpoints are rank 0's.

    Args:
        seed: of the run, not negative; a checkpoint knows it.
        fixed: keep this seed also where the checkpoint that is resumed has another, for the config asks for
            it.
    """

    def __init__(self, seed: int, *, fixed: bool) -> None:
        self.seed = seed
        self.fixed = fixed

    @classmethod
    def from_config(cls, cfg: CfgNode, seed: int) -> StepSeeds:
        return cls(seed, fixed=cfg.SEED >= 0)

    def before_step(self) -> None:
        seed_generators(self.seed, STEPS, comm.get_rank(), self.trainer.iter)

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if not self.fixed:
            self.seed = state["seed"]
