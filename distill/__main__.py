"""The door: `python -m distill recipe=NAME [key=value …]`. Hydra composes, `config.read` types, a pipeline runs."""

import difflib
import errno
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from .config import read
from .errors import InUse, UserError
from .exported import inherit
from .folders import folder
from .launch import end_with_parent, to_launch
from .places import check_teacher
from .ranges import check_ranges
from .several import agree, join, launch_all, now, speaks, together
from .sweep.command import quoted
from .sweep.job import leave_word, of_a_sweep, share_group

# Where Hydra, once it is first asked for anything, finds the sweepers and the launcher.
sys.path.append(str(Path(__file__).parent / "plugins"))

#: What is the user's to mend: a disk that takes nothing more, and what is not for this user to read or write.
CURES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there, or choose another place")
CURES |= {errno.EROFS: "choose another place"}
CURES |= dict.fromkeys((errno.EACCES, errno.EPERM), "allow it to this user, or choose another place")
#: What brings the launchers that are not part of Hydra.
EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm"}
#: What takes keys of any name: text, and what transformers builds a model from.
OPEN = ("data.domains.", "teacher.architecture.")


def register_recipes() -> None:
    """Make every recipes/NAME.yaml an option of the group `recipe`, laid over the whole configuration."""
    for path in sorted(folder("recipes").glob("*.yaml")):
        ConfigStore.instance().store(group="recipe", name=path.stem, node=OmegaConf.load(path), package="_global_")


def run_directory(composed: DictConfig) -> str:
    """run_dir as asked for, or outputs/<recipe>/<date_time>; a job of a sweep has one of its own."""
    if composed.run_dir is not None:
        return composed.run_dir
    if of_a_sweep():
        return HydraConfig.get().runtime.output_dir
    if composed.resume:
        raise UserError("resume=true needs run_dir: give the directory of the run that is to go on")
    return f"outputs/{composed.recipe}/{now():%Y-%m-%d_%H-%M-%S}"


def run(composed: DictConfig) -> None:
    try:
        inherit(composed, HydraConfig.get().overrides.task)
        agree(composed)
        composed.run_dir = run_directory(composed)
        if of_a_sweep():
            share_group(composed.logger)
        config = read(composed)
        # Before torch is there, in this process and in those that it starts.
        check_ranges(config)
        check_teacher(config.teacher.path)
        if count := to_launch(config.trainer):
            return launch_all(config.run_dir, count)
        # Imported late: torch and transformers take seconds, and --help or a mistyped key need neither.
        from .pipeline import PIPELINES

        if config.goal not in PIPELINES:
            raise UserError(f"goal={config.goal} is unknown; known: {', '.join(PIPELINES)}")
        PIPELINES[config.goal](together(config))
    except Exception as error:
        said, alone = mistake(error, composed.run_dir), HydraConfig.get().mode == RunMode.RUN
        if not speaks():
            sys.exit(1 if said is None else 2)
        if of_a_sweep() and not isinstance(error, InUse):
            leave_word(error, said)
        if said is None and alone:
            raise
        # Here and not in `main`, because Hydra announces every exception that reaches it.
        if said is None:
            traceback.print_exc()
        else:
            fail(said)
        if alone:
            sys.exit(2)


def mistake(error: Exception, run_dir: str | None) -> str | None:
    """What is the user's to mend, on one line; None of an error that is not."""
    if isinstance(error, OSError) and error.errno in CURES:
        return f"{error.filename or run_dir}: {error.strerror}; {CURES[error.errno]}"
    return str(error) if isinstance(error, UserError) else None


def explain(error: Exception, known: list[str]) -> str:
    """Hydra's message on one line, with the nearest known key where one was mistyped."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OverrideParseException):
        key, equals, value = error.override.partition("=")
        cure = f'put its value in quotes of its own, "{key}={quoted(value)}"' if equals else "write key=value"
        return f"{error.override} cannot be read; {cure}"
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        if extra := EXTRAS.get(option):
            return f"{group}={option} is not installed; pip install 'distill[{extra}]'"
        return f"{group}={option} is unknown; known: {', '.join(error.options)}"
    if lines and lines[0].startswith("Could not override"):
        key = lines[0].split("'")[1]
        # Of a value {…} that is what takes it, and the cause has the key in it that there is not.
        inner = str(getattr(error.__cause__, "full_key", None))
        key = inner if inner.startswith(key) else key
        if key in mixer_keys():
            return f"{key} is no key of the mixer that was chosen; leave it out, or choose another mixer"
        if key.startswith(OPEN):
            return f"{key} is new here; write +{key} to add it"
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        return f"unknown key {key}" + (f"; did you mean {', '.join(near)}?" if near else "; see --help")
    return " ".join(lines)


def mixer_keys() -> set[str]:
    """Every dotted key that some mixer has."""
    files = [OmegaConf.load(file) for file in folder("conf").glob("mixer/**/*.yaml")]
    return {f"mixer.{name!s}" for file in files for name in file if name != "defaults"}


def known_keys() -> list[str]:
    """Every dotted key of the default configuration."""
    with hydra.initialize_config_dir(str(folder("conf")), version_base="1.3"):
        composed = OmegaConf.to_container(hydra.compose("config"), resolve=False)
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for name, value in node.items():
            keys.append(f"{prefix}{name}")
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")

    walk(composed, "")
    return keys


def main() -> None:
    end_with_parent()
    register_recipes()
    # Otherwise Hydra prints a page of its own about an error and exits with 1.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Hydra takes keys from one place only: after what is no key.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda each: each not in ("-m", "--multirun"))
    try:
        join()
        hydra.main(version_base="1.3", config_path=str(folder("conf")), config_name="config")(run)()
    except HydraException as error:
        of_job = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
        sys.exit(fail(explain(error, known_keys()) + of_job))
    except UserError as error:
        # Of a sweep as a whole, or of what has launched this.
        sys.exit(fail(str(error)))
    except KeyboardInterrupt:
        fail("stopped")
        sys.exit(130)


def fail(message: str) -> int:
    if speaks():
        print(f"distill: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
