"""What is typed after `python -m distill.…`, where no recipe is composed."""

import argparse
from typing import NoReturn


class CommandLine(argparse.ArgumentParser):
    """As argparse has it, but that a mistake is one line, as `errors.exit_code` prints others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"distill: {message.removeprefix('argument ')}; see {self.prog} --help\n")
