"""`python -m distill.serve CHECKPOINT`: an OpenAI-compatible server of one student."""

import argparse
import importlib.util
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from ..command_line import CommandLine
from ..errors import UserError, exit_code, reason
from ..exported import DTYPES, load_decoder

PROGRAM = "python -m distill.serve"
#: What transformers' server is built on.
NEEDED = ("fastapi", "uvicorn", "openai", "pydantic")
#: Of arguments that count something.
LEAST = {"slots": 1, "waiting": 1, "longest": 1, "chunk": 1, "room": 0, "grace": 0}


def main(arguments: list[str] | None = None) -> int:
    """Exit code, see `errors.exit_code`; a server that is stopped by a signal ends well."""
    given = parsed(arguments)
    return exit_code(lambda: serve(given))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = CommandLine(PROGRAM, description="Serve a student with OpenAI's chat and completions API.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the student/ that a run exported")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    parser.add_argument("--name", help="what the model is called in requests (the name of its folder)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (the first GPU, if there is one)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the weights; the state is float32 (%(default)s)"
    )
    parser.add_argument("--chat-template", type=Path, metavar="FILE", help="for a student that has none")
    parser.add_argument("--slots", type=int, default=32, help="answers that are written at a time (%(default)s)")
    parser.add_argument("--waiting", type=int, default=1024, help="requests that may wait for a slot (%(default)s)")
    parser.add_argument(
        "--longest",
        type=int,
        default=32768,
        help="tokens of prompt and answer, at most the positions where these were learned (%(default)s)",
    )
    parser.add_argument("--chunk", type=int, default=512, help="tokens of a prompt read at a time (%(default)s)")
    parser.add_argument(
        "--room", type=int, default=256, help="MiB of states kept for prompts to go on from (%(default)s)"
    )
    parser.add_argument(
        "--states", type=Path, metavar="FILE", help="where these are read from, and saved when it stops"
    )
    parser.add_argument(
        "--grace", type=int, default=30, help="seconds for answers to end when it is stopped (%(default)s)"
    )
    return parser.parse_args(arguments)


def serve(given: argparse.Namespace) -> None:
    """Loads the student, then answers until SIGINT or SIGTERM; states are saved after the last answer."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed: pip install 'distill[serve]'")
    for name, least in LEAST.items():
        if getattr(given, name) < least:
            raise UserError(f"--{name} has to be {least} at least")
    from .app import build_app
    from .stopping import Server

    with listen(given.host, given.port) as listening:
        served, closing = loaded(given)
        server = Server(build_app(served), given.grace, served.batch.stop)
        for each in (signal.SIGINT, signal.SIGTERM):
            # uvicorn stops at the first and then sends it once more, to whom it concerned before.
            signal.signal(each, lambda *_: None)
        host, port = listening.getsockname()[:2]
        print(f"{served.name} answers at http://{host}:{port}/v1; Ctrl-C stops it", flush=True)
        try:
            server.run(sockets=[listening])
        finally:
            # Also where a second signal left no time for the first.
            served.batch.stop()
            closing()


def listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), backlog=2048, family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port} cannot be listened at: {reason(error)}") from error


def loaded(given: argparse.Namespace) -> tuple[Any, Any]:
    """What is served, with the states it had when it was stopped; and what is to be done when it is stopped again."""
    from safetensors import SafetensorError
    from transformers import AutoTokenizer
    from transformers.utils import logging

    from ..device import named_device
    from ..positions import within_positions
    from .batch import Batch
    from .host import Served
    from .prefixes import Prefixes, fingerprint

    # Of every request there would be a line.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = given.checkpoint.expanduser()
    model = load_decoder(path, given.dtype, named_device(given.device))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, config=model.lm.config)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be served: {reason(error)}") from error
    if given.chat_template is not None:
        tokenizer.chat_template = template(given.chat_template, tokenizer)
    if given.states is not None and not os.access(given.states.absolute().parent, os.W_OK):
        raise UserError(f"--states {given.states} cannot be written: name a file in a folder that can")

    states, student = Prefixes(given.room * 2**20), fingerprint(path)
    if given.states is not None and given.states.exists():
        print(f"{states.load(given.states, student, model)} states from {given.states}")
    batch = Batch(model, states, given.slots, given.chunk)
    name, longest = given.name or path.resolve().name, within_positions(model.lm, given.longest)

    def closing() -> None:
        if given.states is not None:
            try:
                states.save(given.states, student)
            except (OSError, SafetensorError) as error:
                raise UserError(f"--states {given.states} cannot be written: {reason(error)}") from error
            print(f"{len(states.states)} states in {given.states}")

    return Served(name, model, tokenizer, batch, longest, given.waiting), closing


def template(file: Path, tokenizer: Any) -> str:
    """A chat template that a conversation can be written with."""
    import jinja2

    try:
        read = file.read_text(encoding="utf-8")
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], chat_template=read, tokenize=False)
    except (OSError, ValueError, TypeError, jinja2.TemplateError) as error:
        raise UserError(f"--chat-template {file} cannot be used: {reason(error)}") from error
    return read


if __name__ == "__main__":
    sys.exit(main())
