"""What a run has to do with the sweep that it is a job of."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ..errors import reason
from .state import State, mark


def of_a_sweep() -> bool:
    """Only jobs of one have a number."""
    return not OmegaConf.is_missing(HydraConfig.get().job, "num")


def share_group(logger: DictConfig | None) -> None:
    """Where runs are grouped, as at Weights & Biases, those of one sweep are, by the name of its folder."""
    if logger is not None and "group" in logger and logger.group is None:
        logger.group = Path(str(HydraConfig.get().sweep.dir)).name


def leave_word(error: Exception, said: str | None) -> None:
    """Why this job ends; said: what it tells the user of it, if anything."""
    mark(
        Path(HydraConfig.get().runtime.output_dir), State("failed", said or f"{type(error).__name__}: {reason(error)}")
    )
