"""The outermost layer of the API: gives each request an id, and lets no error out unexplained."""

import random
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from netboot import problems


class Boundary:
    """ASGI layer: sets the request's id (also header X-Request-ID) and answers any exception
    that came through with a 500 problem document.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # An id, not a secret: the system's source of chance would give up the turn to run.
        request_id = str(uuid.UUID(int=random.getrandbits(128), version=4))
        scope[problems.REQUEST_ID] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            answer = problems.answer_to(error)
            if answer is None:
                problems.log_unexpected(error, scope)
                answer = problems.UNEXPECTED
            if started:
                # Half an answer is out; only closing the connection tells the client so.
                raise
            await problems.respond(answer, scope)(scope, receive, send_with_id)
