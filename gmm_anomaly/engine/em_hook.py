"""EM over the feature memory, between the optimiser's steps."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.gmm.health import state_numbers

LOG_PERIOD = 20


class EMHook(HookBase):
    """Moves what the forward pass recorded into the memory after each step, and runs EM every few steps.

    The first EM step follows the first iteration, as in the released GMMSeg code.

    Args:
        bank: the mixtures.
        interval: iterations between EM steps.
        start_momentum: momentum of the means at iteration 0; None: the bank's own throughout.
        ramp: share of the schedule after which the bank's own momentum is reached; ``1 - momentum`` falls
            geometrically until then.
    """

    def __init__(
        self,
        bank: GaussianMixtureBank,
        *,
        interval: int = 5,
        start_momentum: float | None = None,
        ramp: float = 0.5,
    ) -> None:
        if interval < 1:
            raise ValueError(f"MODEL.GMM.UPDATE_INTERVAL: expected at least 1, found {interval}")
        self.bank = bank
        # Without this a classifier records nothing, and says so.
        bank.em_attached = True
        self.interval = interval
        self.start_momentum = start_momentum
        self.ramp = ramp

    @classmethod
    def from_config(cls, cfg: CfgNode, bank: GaussianMixtureBank) -> EMHook:
        keys = cfg.MODEL.GMM
        return cls(
            bank,
            interval=keys.UPDATE_INTERVAL,
            start_momentum=keys.WARM_START_MOMENTUM if keys.WARM_START else None,
        )

    def before_train(self) -> None:
        self.bank.broadcast()

    def after_step(self) -> None:
        iteration = self.trainer.iter
        if iteration % self.interval == 0:
            self.bank.update(momentum_mean=self.momentum(iteration / self.trainer.max_iter))
        else:
            self.bank.commit()
        if iteration % LOG_PERIOD == 0:
            self._log(iteration)

    def momentum(self, progress: float) -> float:
        """Momentum of the means when the share ``progress`` of the schedule is over."""
        final = self.bank.momentum_mean
        if self.start_momentum is None or progress >= self.ramp:
            return final
        share = progress / self.ramp
        return 1 - (1 - self.start_momentum) ** (1 - share) * (1 - final) ** share

    def _log(self, iteration: int) -> None:
        storage = self.trainer.storage
        storage.put_scalar(
            "gmm/momentum", self.momentum(iteration / self.trainer.max_iter), smoothing_hint=False
        )
        for name, number in state_numbers(self.bank).items():
            storage.put_scalar(f"gmm/{name}", number, smoothing_hint=False)
