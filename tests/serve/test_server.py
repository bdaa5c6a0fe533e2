"""A real server, in a process of its own on loopback, and the clients that people use."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch
from starlette.responses import StreamingResponse

from distill.serve.__main__ import main
from distill.serve.api import Refused
from distill.serve.app import ended
from distill.serve.choice import Wanted
from distill.serve.host import Asking, Served

from .conftest import TEMPLATE

pytestmark = pytest.mark.xdist_group("serve")

#: Seconds in which whatever is waited for has to come.
PATIENCE = 60
BEGINNINGS = ("def ", "class Reader", "import os\n\n", "# the first of", "for each in range(", "    return ", "x = {")


class Server:
    """`python -m distill.serve`, stopped by its process id when the block ends."""

    def __init__(self, checkpoint: Path, *arguments: str):
        command = [sys.executable, "-m", "distill.serve", str(checkpoint), "--port", "0", "--device", "cpu", *arguments]
        alone, pipe = os.environ | {"OMP_NUM_THREADS": "1"}, subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=alone)

    def __enter__(self) -> "Server":
        assert self.process.stdout is not None
        self.said = []
        while line := self.process.stdout.readline():
            self.said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", line):
                self.port, self.url = int(found[1]), found[0]
                return self
        raise AssertionError(self.process.stderr and self.process.stderr.read())

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def stop(self, number: int) -> tuple[int, str]:
        """Its exit code, and what it said on stderr."""
        self.process.send_signal(number)
        _, error = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, error

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body))
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        return answer.status, content

    def load(self) -> dict[str, Any]:
        status, content = self.ask("GET", "/health")
        assert status == 200 and content["status"] == "ok"
        return content


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    file = tmp_path_factory.mktemp("template") / "chat.jinja"
    file.write_text(TEMPLATE)
    return ["--dtype", "float64", "--chat-template", str(file), "--slots", "16", "--chunk", "64"]


@pytest.fixture(scope="module")
def server(checkpoint: Path, arguments: list[str]) -> Iterator[Server]:
    with Server(checkpoint, *arguments) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=PATIENCE)


@pytest.fixture(scope="module")
def write(student: Any, tokenizer: Any) -> Any:
    """Text → the tokens that `generate` goes on with, greedily."""

    def generated(text: str, new: int) -> list[int]:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            return student.generate(ids, max_new_tokens=new, do_sample=False)[0, ids.shape[1] :].tolist()

    return generated


def conversation(text: str) -> str:
    return f"# user: {text}\n# assistant: "


def test_a_streamed_chat_is_what_generate_writes(client: openai.OpenAI, write: Any, tokenizer: Any):
    chunks = list(
        client.chat.completions.create(
            model="student", messages=[{"role": "user", "content": "import os"}], max_tokens=40, stream=True
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == tokenizer.decode(write(conversation("import os"), 40), skip_special_tokens=True)
    assert len(chunks) > 20 and chunks[-1].choices[0].finish_reason == "length"
    prompt = len(tokenizer(conversation("import os")).input_ids)
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (prompt, 40, prompt + 40)


def test_a_whole_answer_ends_before_its_stop(client: openai.OpenAI, write: Any, tokenizer: Any):
    whole = tokenizer.decode(write("def ", 40))
    stop = whole[12:15]
    answer = client.completions.create(model="student", prompt="def ", max_tokens=40, stop=[stop, "nowhere"])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop" and 0 < answer.usage.completion_tokens < 40


def test_draws_repeat_with_a_seed(client: openai.OpenAI):
    def said(seed: int) -> str:
        answer = client.completions.create(model="student", prompt="def ", max_tokens=20, temperature=1.0, seed=seed)
        return answer.choices[0].text

    assert said(1) == said(1) != said(2)


def test_many_at_once_get_their_own_answers(server: Server, write: Any, tokenizer: Any):
    """200 of mixed length, half of them streamed; no prompt is asked twice with the same length of the answer."""
    prompts = [f"{beginning}{'value ' * (17 * i % 90)}{i}" for i in range(3) for beginning in BEGINNINGS][:20]
    longest = {prompt: write(prompt, 20) for prompt in prompts}
    asked = [(prompts[i % 20], 1 + i // 20 * 2 + i % 2) for i in range(200)]
    assert len(set(asked)) == 200

    async def answers() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=PATIENCE) as client:

            async def one(i: int, prompt: str, new: int) -> str:
                given = {"model": "student", "prompt": prompt, "max_tokens": new}
                if i % 2:
                    return (await client.completions.create(**given)).choices[0].text
                stream = await client.completions.create(**given, stream=True)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(one(i, *each) for i, each in enumerate(asked)))

    for (prompt, new), text in zip(asked, asyncio.run(answers()), strict=True):
        assert text.rstrip("\N{REPLACEMENT CHARACTER}") == tokenizer.decode(longest[prompt][:new]).rstrip(
            "\N{REPLACEMENT CHARACTER}"
        )
    idle(server)


def idle(server: Server) -> None:
    until = time.monotonic() + PATIENCE
    while (load := server.load())["waiting"] + load["reading"] + load["decoding"]:
        assert time.monotonic() < until, load
        time.sleep(0.05)


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
#: Path, body, status, code and what the message says.
MISTAKES: dict[str, tuple[str, Any, int, str | None, str]] = {
    "no JSON": (CHAT, b'{"model": "student", ', 400, None, "no JSON"),
    "no object": (CHAT, [1, 2], 400, None, "no JSON object"),
    "not text": (CHAT, b"\xff\xfe\x00", 400, None, "no JSON"),
    "model": (TEXT, {"model": "gpt-5", "prompt": "x"}, 404, "model_not_found", "'gpt-5'"),
    "model of a chat": (CHAT, {"model": "gpt-5", "messages": HELLO}, 404, "model_not_found", "'student' is"),
    "no model": (TEXT, {"prompt": "x"}, 400, None, "model: Field required"),
    "no prompt": (TEXT, {"model": "student"}, 400, None, "prompt"),
    "empty prompt": (TEXT, {"model": "student", "prompt": ""}, 400, None, "empty"),
    "prompts": (TEXT, {"model": "student", "prompt": ["a", "b"]}, 400, None, "prompt"),
    "long prompt": (
        TEXT,
        {"model": "student", "prompt": "word " * 40000},
        400,
        "context_length_exceeded",
        "at most 32,768 tokens",
    ),
    "long answer": (
        TEXT,
        {"model": "student", "prompt": "x", "max_tokens": 10**6},
        400,
        "context_length_exceeded",
        "1,000,000 are asked for",
    ),
    "large": (TEXT, b'{"prompt": "' + b"x" * 2**23, 413, None, "4 MiB"),
    "deep": (TEXT, b"[" * 10**5, 400, None, "no JSON"),
    "characters": (
        TEXT,
        {"model": "student", "prompt": " " * 3_500_000},
        400,
        "context_length_exceeded",
        "characters at most",
    ),
    "no text": (TEXT, b'{"model": "student", "prompt": "\\ud800"}', 400, None, "no prompt can be made"),
    "seed": (TEXT, {"model": "student", "prompt": "x", "seed": 10**30}, 400, None, "seed"),
    "no bias": (TEXT, b'{"model": "student", "prompt": "x", "logit_bias": {"5": NaN}}', 400, None, "logit_bias"),
    "another template": (
        CHAT,
        {"model": "student", "messages": HELLO, "chat_template_kwargs": {"chat_template": "x"}},
        400,
        None,
        "chat_template_kwargs.chat_template",
    ),
    "what the template refuses": (
        CHAT,
        {"model": "student", "messages": [{"role": "nobody", "content": "x"}]},
        400,
        None,
        "nobody speaks",
    ),
    "a call without arguments": (
        CHAT,
        {"model": "student", "messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
        400,
        None,
        "no prompt can be made",
    ),
    "no messages": (CHAT, {"model": "student"}, 400, None, "messages"),
    "messages": (CHAT, {"model": "student", "messages": "hello"}, 400, None, "messages"),
    "no role": (CHAT, {"model": "student", "messages": [{"content": "x"}]}, 400, None, "messages.0.role"),
    "an image": (
        CHAT,
        {"model": "student", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        400,
        None,
        "messages.0.content",
    ),
    "several": (TEXT, {"model": "student", "prompt": "x", "n": 3}, 400, None, "n: "),
    "temperature": (TEXT, {"model": "student", "prompt": "x", "temperature": -1}, 400, None, "temperature"),
    "tokens": (TEXT, {"model": "student", "prompt": "x", "max_tokens": 0}, 400, None, "max_tokens"),
    "stops": (TEXT, {"model": "student", "prompt": "x", "stop": list("abcde")}, 400, None, "stop"),
    "tools": (CHAT, {"model": "student", "messages": HELLO, "tools": [{"type": "function"}]}, 400, None, "no place"),
    "a bias": (TEXT, {"model": "student", "prompt": "x", "logit_bias": {"99999": 1}}, 400, None, "no token 99999"),
    "unknown field": (TEXT, {"model": "student", "prompt": "x", "min_p": 0.1}, 400, None, "min_p: unknown"),
    "format": (
        CHAT,
        {"model": "student", "messages": HELLO, "response_format": {"type": "json_object"}},
        400,
        None,
        "response_format",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_the_apis_own_form(server: Server, name: str):
    path, body, status, code, said = MISTAKES[name]
    found, content = server.ask("POST", path, body)
    assert found == status and list(content) == ["error"]
    assert set(content["error"]) == {"message", "type", "param", "code"}
    assert said in content["error"]["message"] and content["error"]["code"] == code


@pytest.mark.parametrize(("path", "asked"), [(TEXT, {"prompt": "x"}), (CHAT, {"messages": HELLO})])
def test_a_stream_ends_as_the_api_says(server: Server, path: str, asked: dict[str, Any]):
    body = json.dumps({"model": "student", "max_tokens": 3, "stream": True, **asked})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("POST", path, body)
    events = connection.getresponse().read().decode().strip().split("\n\n")
    connection.close()
    assert events[-1] == "data: [DONE]" and all(event.startswith("data: {") for event in events[:-1])


def test_a_token_that_the_student_lacks_is_refused(student: Any, tokenizer: Any):
    """Not left to the next step, which is of the whole batch."""
    served = Served("student", student, tokenizer, SimpleNamespace(beyond=0), 100, 100)  # type: ignore[arg-type]
    known = student.config.vocab_size
    assert served.bounded({"input_ids": torch.tensor([[known - 1]])}, asking(1)) == [known - 1]
    with pytest.raises(Refused, match=f"prompt: the student has no token {known}"):
        served.bounded({"input_ids": torch.tensor([[5, known]])}, asking(1))


def asking(new: int, least: int | None = None) -> Asking:
    return Asking(Wanted(new), least or new, goes_on=True)


def test_an_answer_of_no_said_length_gets_what_room_there_is(student: Any, tokenizer: Any):
    served = Served("student", student, tokenizer, SimpleNamespace(beyond=0), 100, 100)  # type: ignore[arg-type]
    prompt = {"input_ids": torch.arange(90)[None]}
    silent, told = asking(1024, least=1), asking(10)
    served.bounded(prompt, silent)
    served.bounded(prompt, told)
    assert silent.max_new_tokens == told.max_new_tokens == 10
    with pytest.raises(Refused, match="the prompt has 90, and 11 are asked for"):
        served.bounded(prompt, asking(11))
    with pytest.raises(Refused, match="the prompt has 100, and 1 are asked for"):
        served.bounded({"input_ids": torch.arange(100)[None]}, asking(1024, least=1))


def test_who_ends_at_the_last_token_that_may_be_is_not_cut(client: openai.OpenAI, write: Any, tokenizer: Any):
    first, second = (tokenizer.decode(write("def ", new)) for new in (1, 2))
    for stream in (False, True):
        answer = client.completions.create(
            model="student", prompt="def ", max_tokens=2, stop=second[len(first) :], stream=stream
        )
        ends = [each.choices[0].finish_reason for each in answer] if stream else [answer.choices[0].finish_reason]
        assert ends[-1] == "stop"


@pytest.mark.parametrize("nothing", [[], None])
def test_a_message_with_no_calls_keeps_its_text(server: Server, nothing: Any):
    said = [{"role": "assistant", "content": "import os"}, *HELLO]
    counted = []
    for first in (said[0], said[0] | {"tool_calls": nothing}):
        body = {"model": "student", "messages": [first, *said[1:]], "max_tokens": 1, "chat_template_kwargs": None}
        status, content = server.ask("POST", CHAT, body)
        assert status == 200
        counted.append(content["usage"]["prompt_tokens"])
    assert counted[0] == counted[1]


def test_an_error_in_a_stream_has_the_apis_form(server: Server):
    async def events() -> AsyncIterator[str]:
        yield 'data: {"choices": []}\n\n'
        yield 'data: {"choices": []}\n\ndata: {"error": "no \\"room\\" left"}\n\n'

    async def told() -> list[str]:
        return [str(event) async for event in ended(StreamingResponse(events())).body_iterator]  # type: ignore[attr-defined]

    first, last = asyncio.run(told())
    kept, _, error = last.partition("\n\ndata: ")
    assert first == kept + "\n\n"
    assert json.loads(error) == {"error": Refused(500, 'the answer failed: no "room" left').body["error"]}


def test_a_second_signal_loses_no_state(checkpoint: Path, arguments: list[str], tmp_path: Path):
    file = tmp_path / "states.safetensors"
    with Server(checkpoint, *arguments, "--states", str(file)) as running:
        running.ask("POST", TEXT, {"model": "student", "prompt": "import os", "max_tokens": 3})
        body = json.dumps({"model": "student", "prompt": "def ", "max_tokens": 30000}).encode()
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=PATIENCE)
        connection.request("POST", TEXT, body)
        while not running.load()["decoding"]:
            time.sleep(0.05)
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert running.stop(signal.SIGINT) == (0, "")
        answer = connection.getresponse()
        assert answer.status == 500 and "the server was stopped" in json.loads(answer.read())["error"]["message"]
        connection.close()
    assert file.exists()


def test_who_is_cut_off_is_told_in_the_apis_form(checkpoint: Path, arguments: list[str]):
    with Server(checkpoint, *arguments, "--grace", "0") as running:
        body = json.dumps({"model": "student", "prompt": "def ", "max_tokens": 30000}).encode()
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=PATIENCE)
        connection.request("POST", TEXT, body)
        while not running.load()["decoding"]:
            time.sleep(0.05)
        code, error = running.stop(signal.SIGTERM)
        answer = connection.getresponse()
        assert answer.status == 500 and "the server was stopped" in json.loads(answer.read())["error"]["message"]
        connection.close()
    assert code == 0 and "Traceback" not in error


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", CHAT, 405)])
def test_what_is_not_there_is_told_likewise(server: Server, method: str, path: str, status: int):
    found, content = server.ask(method, path)
    assert found == status and content["error"]["type"] == "invalid_request_error"


def test_the_client_knows_the_errors(client: openai.OpenAI, server: Server):
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="student", prompt="x", temperature=3)
    assert [model.id for model in client.models.list()] == ["student"]
    assert client.models.retrieve("student").id == "student"
    assert server.ask("GET", "/v1/models/student")[1]["max_model_len"] == 32768
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize("stream", [True, False])
def test_nobody_is_answered_who_has_hung_up(server: Server, write: Any, client: openai.OpenAI, stream: bool):
    body = json.dumps({"model": "student", "prompt": "def ", "max_tokens": 30000, "stream": stream}).encode()
    head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as caller:
        caller.sendall(head + body)
        until = time.monotonic() + PATIENCE
        while not server.load()["decoding"]:
            assert time.monotonic() < until
        if stream:
            assert caller.recv(100)
    idle(server)
    answer = client.completions.create(model="student", prompt="def ", max_tokens=5)
    assert answer.usage.completion_tokens == 5


def test_a_conversation_goes_on_after_a_restart(
    checkpoint: Path, arguments: list[str], write: Any, tokenizer: Any, tmp_path: Path
):
    """The states of what was read and written are in a file; what comes after them is all that is read anew."""
    file = tmp_path / "states.safetensors"
    more = [*arguments, "--states", str(file), "--name", "mine"]
    first = "tell me of a class that reads a file, line by line, " * 3
    with Server(checkpoint, *more) as server:
        status, answer = server.ask("POST", TEXT, {"model": "mine", "prompt": first, "max_tokens": 12})
        assert status == 200 and not server.load()["reused_tokens"]
        assert server.stop(signal.SIGTERM) == (0, "")
    second = first + tokenizer.decode(write(first, 12)) + " and then"
    with Server(checkpoint, *more) as server:
        kept = server.load()["kept_states"]
        assert kept > 1 and server.said[0] == f"{kept} states from {file}\n"
        status, answer = server.ask("POST", TEXT, {"model": "mine", "prompt": second, "max_tokens": 12})
        assert answer["choices"][0]["text"] == tokenizer.decode(write(second, 12))
        assert server.load()["reused_tokens"] >= len(tokenizer(first).input_ids) - 1
        assert server.stop(signal.SIGINT) == (0, "")


def test_who_finds_no_place_to_wait_is_told_so(checkpoint: Path, arguments: list[str]):
    """One is answered, one waits, and the third may not."""
    with Server(checkpoint, *arguments, "--slots", "1", "--waiting", "1") as server:
        body = json.dumps({"model": "student", "prompt": "def ", "max_tokens": 30000}).encode()
        callers = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE) for _ in range(2)]
        for caller, place in zip(callers, ("decoding", "waiting"), strict=True):
            caller.request("POST", TEXT, body)
            until = time.monotonic() + PATIENCE
            while not server.load()[place]:
                assert time.monotonic() < until
        status, content = server.ask("POST", TEXT, {"model": "student", "prompt": "x"})
        assert status == 429 and content["error"]["type"] == "rate_limit_error"
        for caller in callers:
            caller.close()
        idle(server)


def test_mistakes_in_the_command_are_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], server: Server
):
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    told = json.loads((checkpoint / "provenance.json").read_text())
    (encoder / "provenance.json").write_text(json.dumps(told | {"task": "masked_lm"}))
    (tmp_path / "states").write_text("nothing")
    (tmp_path / "broken").write_text("{{ broken")
    for command, said in (
        ([str(tmp_path / "nowhere")], "no such directory"),
        ([str(tmp_path)], "no provenance.json"),
        ([str(encoder)], "masked_lm, which writes no text"),
        ([str(checkpoint), "--port", str(server.port)], "cannot be listened at"),
        ([str(checkpoint), "--device", "abacus"], "abacus"),
        ([str(checkpoint), "--slots", "0"], "--slots"),
        ([str(checkpoint), "--room", "-1"], "--room has to be 0 at least"),
        ([str(checkpoint), "--chat-template", str(tmp_path / "none")], "--chat-template"),
        ([str(checkpoint), "--chat-template", str(tmp_path / "broken")], "broken cannot be used: unexpected end"),
        ([str(checkpoint), "--states", str(tmp_path / "no" / "states")], "states cannot be written"),
        ([str(checkpoint), "--states", str(tmp_path / "states")], "cannot be read as states"),
    ):
        assert main(command if "--port" in command else [*command, "--port", "0"]) == 2
        printed = capsys.readouterr().err.splitlines()
        assert printed[-1].startswith("distill: ") and said in printed[-1], printed
