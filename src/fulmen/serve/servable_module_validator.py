"""Tries out before the training that a module can be served."""

from __future__ import annotations

import copy
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

from fulmen.callback import Callback
from fulmen.errors import MisconfigurationException
from fulmen.extras import need
from fulmen.ranks import rank_zero_only, rank_zero_warn
from fulmen.serve.servable_module import ServableModule

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["ServableModuleValidator"]

_POLL_SECONDS = 0.02
_GRACE_SECONDS = 1


class ServableModuleValidator(Callback):
    """Serves a copy of the module when the training starts, sends it its own example, and compares the answer.

    Args:
        optimization: How the module is changed before it is served; there is no way yet but None.
        server: What serves it: "fastapi".
        host: Address of the server.
        port: Its port.
        timeout: Seconds to wait for the server to start, and for its answer; importing its parts does not count.
        exit_on_failure: Whether the run ends with an exception if it does not work; else there is a warning.

    Raises:
        ModuleNotFoundError: The extra ``serve`` is not installed.
        NotImplementedError: Another server or optimization is asked for.
    """

    def __init__(
        self,
        optimization: Literal["trace", "script", "onnx", "tensorrt"] | None = None,
        server: Literal["fastapi", "ml_server", "torchserve", "sagemaker"] = "fastapi",
        host: str = "127.0.0.1",
        port: int = 8080,
        timeout: int = 20,
        exit_on_failure: bool = True,
    ) -> None:
        super().__init__()
        need("fastapi")
        need("uvicorn")
        if optimization is not None or server != "fastapi":
            raise NotImplementedError(
                f"`ServableModuleValidator(optimization={optimization!r}, server={server!r})`: only"
                " `optimization=None, server='fastapi'` is possible."
            )
        self.optimization = optimization
        self.server = server
        self.host = host
        self.port = port
        self.timeout = timeout
        self.exit_on_failure = exit_on_failure
        self.resp: Any = None
        self._failure: str | None = None
        self._is_done = False

    @property
    def successful(self) -> bool | None:
        """Whether the answer was the expected one; None before the check."""
        return self._failure is None if self._is_done else None

    def state_dict(self) -> dict[str, Any]:
        """What was checked, and how it ended."""
        return {"successful": self.successful, "optimization": self.optimization, "server": self.server}

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, servable_module: LightningModule) -> None:
        """Serves the module and asks it."""
        self._failure = self._check(servable_module)
        self._is_done = True
        if self._failure is None:
            return
        message = f"`{type(servable_module).__name__}` cannot be served: {self._failure}"
        if self.exit_on_failure:
            raise MisconfigurationException(message, subject=servable_module)
        rank_zero_warn(message)

    def _check(self, module: Any) -> str | None:
        """Does it all; returns what is wrong, None if nothing."""
        if not isinstance(module, ServableModule):
            return "it does not inherit from `fulmen.serve.ServableModule`."
        payload = module.configure_payload()
        try:
            listener = socket.create_server((self.host, self.port))
        except OSError as error:
            return f"there can be no server at {self._url}: {error}. Choose another `port`."
        with listener, self._serving(copy.deepcopy(module).eval(), listener):
            try:
                self.resp = self._ask(payload)
            except urllib.error.HTTPError as error:
                return f"the server answered {error.code}: {error.read().decode(errors='replace')}"
            except OSError as error:
                return f"the server at {self._url} did not answer in {self.timeout} s: {error}"
        expected = module.configure_response()
        return None if self.resp == expected else f"the answer is {self.resp}, expected {expected}."

    @property
    def _url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def _ask(self, payload: dict[str, Any]) -> Any:
        body = json.dumps(payload).encode()
        request = urllib.request.Request(f"{self._url}/serve", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return json.load(answer)

    @contextmanager
    def _serving(self, module: ServableModule, listener: socket.socket) -> Iterator[None]:
        """Runs the server in a thread of this process, where nothing has to be pickled, until the block ends."""
        uvicorn: Any = need("uvicorn")
        settings = {"log_level": "error", "timeout_graceful_shutdown": _GRACE_SECONDS}
        config = uvicorn.Config(application(module), **settings)
        config.load()  # imports what the server is made of, which may take long
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=[[listener]], name="fulmen-serve", daemon=True)
        thread.start()
        give_up = time.monotonic() + self.timeout
        while not server.started and thread.is_alive() and time.monotonic() < give_up:
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(_GRACE_SECONDS + self.timeout)


def application(module: ServableModule) -> Any:
    """The web application: a request to ``/serve`` goes through the module, ``/ping`` says that it is there."""
    fastapi: Any = need("fastapi")
    app = fastapi.FastAPI()
    from_json, to_json = module.configure_serialization()

    @app.get("/ping")  # type: ignore[untyped-decorator]
    def ping() -> bool:
        return True

    @app.post("/serve")  # type: ignore[untyped-decorator]
    def serve(payload: dict[str, Any]) -> Any:
        try:
            arguments = {name: from_json[name](value) for name, value in payload["body"].items()}
            with torch.no_grad():
                results = module.serve_step(**arguments)
            return {name: to_json[name](value) for name, value in results.items()}
        except Exception as error:  # it is the client who has to learn what is wrong with the module
            raise fastapi.HTTPException(500, f"{type(error).__name__}: {error}") from error

    return app
