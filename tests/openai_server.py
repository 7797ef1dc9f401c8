"""A real HTTP server that speaks like OpenAI's, well or unwell, for tests of those who ask it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from inscp.records import Prompt, Turn

Reply = str | bytes | int | dict[str, Any]
"""The text of a good answer; or the bytes of a body; or a status; or the keys that a good answer has otherwise."""

CUT, HANGS = b"cut", b"hangs"
"""Half an answer, and none for a long time."""

KEY = "sk-secret-0123456789"


def questions(n: int) -> list[Prompt]:
    """What to ask."""
    return [(Turn("user", f"question {k}"),) for k in range(n)]


class OpenAIServer:
    """Answers at `address` what `answer` says to the body of a request.

    Attributes:
        asked: the bodies of all requests, in order.
        keys: what they had in the Authorization header.
        headers: to send with a status that is no success.
        refusal: the body of such a status.
        models: the status of the list of models.
        most_at_once: how many requests it has worked on at the same time.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], Reply]) -> None:
        self.answer, self.models, self.refusal = answer, 200, b'{"error": {"message": "not now"}}'
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.headers: dict[str, str] = {}
        self.most_at_once = self.at_once = 0
        self.lock, self.closing, self.address = threading.Lock(), threading.Event(), ""

    def prompts(self) -> list[str]:
        """The last turn of every request, in order."""
        return [body["messages"][-1]["content"] if "messages" in body else body["prompt"] for body in self.asked]


def completion(body: dict[str, Any], text: str, **otherwise: Any) -> dict[str, Any]:
    """A good answer: three tokens read and two written, unless told otherwise."""
    said = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choice = {"index": 0, "finish_reason": otherwise.pop("finish_reason", "stop"), **said}
    return {"id": "1", "object": "x", "created": 0, "model": "m", "choices": [choice], "usage": usage, **otherwise}


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Reply]) -> Iterator[OpenAIServer]:
    """A server while the block runs."""
    state = OpenAIServer(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.keys.add(self.headers["Authorization"])
            self.send(state.models, b'{"object": "list", "data": []}' if state.models == 200 else state.refusal)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.asked.append({"path": self.path, **body})
                state.keys.add(self.headers["Authorization"])
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                reply = state.answer(body)
            finally:
                with state.lock:  # before who has the reply asks for more
                    state.at_once -= 1
            self.reply(body, reply)

        def reply(self, body: dict[str, Any], reply: Reply) -> None:
            if isinstance(reply, int):
                self.send(reply, state.refusal)
            elif reply is HANGS:
                state.closing.wait(60)
            elif reply is CUT:
                self.send(200, json.dumps(completion(body, "half")).encode(), sent=0.5)
            elif isinstance(reply, bytes):
                self.send(200, reply)
            else:
                said = {"text": reply} if isinstance(reply, str) else reply
                self.send(200, json.dumps(completion(body, **said)).encode())

        def send(self, status: int, content: bytes, sent: float = 1.0) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in state.headers.items() if status >= 400 else ():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: int(len(content) * sent)])
            self.close_connection = sent < 1

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.address = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield state
        finally:
            state.closing.set()
            server.shutdown()


def saying(*replies: Reply) -> AbstractContextManager[OpenAIServer]:
    """A server that gives these replies one after another, the last one for ever."""
    left = list(replies)
    return serving(lambda _: left.pop(0) if len(left) > 1 else left[0])
