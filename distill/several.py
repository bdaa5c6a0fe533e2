"""What the door does for a run of several processes. One alone has nobody to ask, and imports no torch to find out."""

import os
import signal
import sys
from datetime import datetime

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from .config import Config, flat
from .launch import launch, launched
from .sweep.command import flags, of_a_job, of_a_run, quoted
from .sweep.job import of_a_sweep

#: Exit codes of what Ctrl-C or SIGTERM has ended.
ASKED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def join() -> None:
    """Meets the others that a launcher has started."""
    if launched():
        # Before torch is there: what it would say of a process that has left.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from . import ranks

        ranks.join()


def agree(composed: DictConfig) -> None:
    """Before they ask each other anything else, processes that were told different things end, see `ranks.agree`."""
    if launched():
        from . import ranks

        ranks.agree(dict(flat(OmegaConf.to_container(composed, resolve=True))))


def now() -> datetime:
    """The clocks of several processes differ: it is the first one's."""
    time = datetime.now()
    if not launched():
        return time
    from . import ranks

    return ranks.told(time)


def together(config: Config) -> Config:
    """The configuration of one of several processes, as all of them have it, see `ranks.together`."""
    if not launched():
        return config
    from . import ranks

    return ranks.together(config)


def speaks() -> bool:
    """Whether it is this process that says why a run ends: of several the first to fail."""
    if not launched():
        return True
    from . import ranks

    return ranks.speaks()


def launch_all(run_dir: str, count: int) -> None:
    """The same run in `count` processes, which tell of its mistakes themselves."""
    hydra = HydraConfig.get()
    typed = [each for each in hydra.overrides.task if not each.startswith("run_dir=")]
    typed += [each for each in of_a_run(hydra) if not each.startswith(("hydra.job.num=", "hydra.run.dir="))]
    if of_a_sweep():
        typed += of_a_job(hydra.job.num, hydra.sweep.dir, hydra.runtime.output_dir)
    code = launch(count, ["-m", "distill", *flags(hydra), *typed, f"run_dir={quoted(run_dir)}"])
    # Of several jobs in one process the others go on, unless they, too, were asked to end.
    if code and (hydra.mode == RunMode.RUN or code in ASKED):
        sys.exit(code)
