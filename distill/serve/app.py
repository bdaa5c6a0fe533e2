"""The routes of the server, and its errors in the API's form."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .api import Refused
from .host import Chats, Completions, Served

#: Bytes of a request that are read; more is no prompt.
MOST = 4 * 2**20
#: How handlers begin to tell an error in a stream: a text, where the API has an object.
FAILED = 'data: {"error": '
#: Seconds between two looks whether someone still waits for an answer.
PATIENCE = 0.5


def build_app(served: Served) -> Starlette:
    host: Any = served
    chats, completions = Chats(host, host), Completions(host, host)
    entry = {"id": served.name, "object": "model", "created": 0, "owned_by": "distill"}
    entry["max_model_len"] = served.longest

    async def chat(request: Request) -> Response:
        if not served.tokenizer.chat_template:
            raise Refused(400, "this student has no chat template: use /v1/completions, or serve with --chat-template")
        return await answered(request, chats.handle_request)

    async def complete(request: Request) -> Response:
        return await answered(request, completions.handle_request)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [entry]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != served.name:
            raise Refused(404, f"there is no model {request.path_params['name']!r} here", "model_not_found")
        return JSONResponse(entry)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", **served.batch.load})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        served.batch.start()
        yield
        served.batch.stop()

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", complete, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
        ],
        exception_handlers={Refused: refused, HTTPException: refused, Exception: refused},
        lifespan=lifespan,
    )


async def answered(request: Request, handle: Callable[[dict[str, Any], str], Awaitable[Response]]) -> Response:
    """What a handler answers; nothing where nobody waits for it any more."""
    body = await read(request)
    task = asyncio.ensure_future(handle(body, request.headers.get("x-request-id") or new_id()))
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=PATIENCE)
            if not task.done() and await request.is_disconnected():
                return Response(status_code=499)
        return ended(task.result())
    finally:
        # Of no effect on one that is done.
        task.cancel()


def ended(answer: Response) -> Response:
    """The answer; where it is streamed, with the line that the API ends a stream with, or the error in its own form."""
    if not isinstance(answer, StreamingResponse):
        return answer
    events: Any = answer.body_iterator

    async def to_the_end() -> AsyncIterator[Any]:
        async for event in events:
            told, failed, message = event.rpartition(FAILED)
            if failed:
                error = Refused(500, f"the answer failed: {json.loads(message.strip().removesuffix('}'))}")
                yield f"{told}data: {json.dumps(error.body)}\n\n"
                return
            yield event
        yield "data: [DONE]\n\n"

    answer.body_iterator = to_the_end()
    return answer


async def read(request: Request) -> dict[str, Any]:
    """The JSON object that was sent, or Refused."""
    content = bytearray()
    try:
        async for part in request.stream():
            content += part
            if len(content) > MOST:
                raise Refused(413, f"a request may have {MOST // 2**20} MiB")
        body = json.loads(content)
    except ClientDisconnect as error:
        raise Refused(499, "the connection was closed") from error
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refused(400, "the request is no JSON object")
    return body


async def refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = Refused(error.status_code, error.detail)
    if not isinstance(error, Refused):
        error = Refused(500, f"{type(error).__name__}: {error}")
    return JSONResponse(error.body, error.status, {"retry-after": "1"} if error.status == 429 else None)


def new_id() -> str:
    return f"cmpl-{uuid.uuid4().hex}"
