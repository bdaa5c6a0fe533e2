"""What Hydra is given for sweeps: `hydra/sweeper=grid|random` and `hydra/launcher=processes`.

Hydra takes plugins from the package hydra_plugins alone, in whatever folder of `sys.path` a part of it is, and imports
this file whenever it starts.
"""

import itertools
import sys
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from distill.errors import UserError, reason
from distill.launch import launched
from distill.sweep.command import again
from distill.sweep.draw import drawn
from distill.sweep.jobs import Sweep, begin, check_begun, place, read
from distill.sweep.launch import launch
from distill.sweep.outcome import check_finished


class Listed(Sweeper):
    """A sweep whose jobs are all known, and written down, before the first begins.

    Hydra's own sweepers end with the first job that fails. Here, whatever the launcher, what became of each is read
    from its directory.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, params: dict[str, str] | None = None):
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    @abstractmethod
    def jobs(self, overrides: Sequence[Override]) -> list[list[str]]:
        """The overrides of every job."""

    def sweep(self, arguments: list[str]) -> None:
        """UserError where not all jobs are finished."""
        if launched():
            raise UserError("-m: a sweep launches the processes of its runs itself; leave the launcher out")
        loader = self.hydra_context.config_loader
        typed = [f"{key}={value}" for key, value in self.params.items()] + arguments
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(typed)
        # Of a key that is given twice, the last one.
        given = self.jobs(list({each.get_key_element(): each for each in parsed}.values()))
        folder = Path(str(self.config.hydra.sweep.dir))
        check_begun(folder, self.config.resume)
        sweep = Sweep(folder, again(arguments, self.config), place(loader, self.config, given))
        begin(sweep)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        try:
            self.launcher.launch(given, initial_job_idx=0)
        except (UserError, HydraException):
            raise
        except Exception as error:
            # Those of Hydra's launchers that lose a job's process give the others up, or no longer wait for them.
            print(f"{type(self.launcher).__name__}: {type(error).__name__}: {reason(error)}", file=sys.stderr)
        check_finished(sweep)


class Grid(Listed):
    """Every combination of values."""

    def jobs(self, overrides: Sequence[Override]) -> list[list[str]]:
        # What is named twice is done once.
        return [list(each) for each in dict.fromkeys(itertools.product(*map(choices, overrides)))]


class Random(Listed):
    """n draws, see `draw.drawn`."""

    def __init__(self, n: int, seed: int, params: dict[str, str] | None = None):
        super().__init__(params)
        self.n, self.seed = n, seed

    def jobs(self, overrides: Sequence[Override]) -> list[list[str]]:
        at_least_one("hydra.sweeper.n", self.n)
        return drawn(overrides, self.n, self.seed)


class Processes(Launcher):
    """See `launch`; takes the jobs of a sweep that is listed."""

    def __init__(self, at_a_time: int):
        self.at_a_time = at_a_time

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        at_least_one("hydra.launcher.at_a_time", self.at_a_time)
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Returns nothing: what became of the jobs is in their directories."""
        launch(read(Path(str(self.config.hydra.sweep.dir))).jobs, self.config, self.at_a_time)
        return []


def at_least_one(key: str, number: object) -> None:
    """UserError for what counts nothing."""
    if not isinstance(number, int) or number < 1:
        raise UserError(f"{key}={number}: a whole number of at least 1 is needed")


def choices(override: Override) -> list[str]:
    """What a key may be, as overrides; UserError where that is an interval."""
    key = override.get_key_element()
    if override.is_interval_sweep():
        raise UserError(f"{key}: an interval has no end of values; draw some of them with hydra/sweeper=random")
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [str(override.input_line)]
