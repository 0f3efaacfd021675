"""What servers speak: how a request is written, and what a frame of the streamed answer says."""

from typing import NamedTuple, Protocol

import httpx
import msgspec

from service.bench.options import Api
from service.errors import SettingError
from service.protocol import Request

TIMEOUT_S = 30.0
"""Seconds in which a server must say what it speaks."""


class Arrival(NamedTuple):
    """What one frame brought."""

    num_tokens: int = 0
    total: int | None = None
    """Tokens of the whole answer, where the frame tells it."""
    error: str = ""


class ApiClient(Protocol):
    """A way to ask for a stream of exactly `max_tokens` tokens, the likeliest ones."""

    path: str

    def encode(self, request: Request) -> bytes:
        """Return the body that asks for it."""

    def decode(self, data: bytes) -> Arrival:
        """Read a frame, or the body of a refusal.

        Raises:
            msgspec.DecodeError: it is none.
        """


class Generate:
    """Minigpt's own."""

    path = "/generate"

    def encode(self, request: Request) -> bytes:
        """Return the body; the end-of-text token is biased away."""
        own = {"token_ids": request.token_ids, "logit_bias": request.params.logit_bias}
        return msgspec.json.encode(_common_fields(request) | own)

    def decode(self, data: bytes) -> Arrival:
        """Read a frame."""
        frame = msgspec.json.decode(data, type=_Frame)
        return Arrival(num_tokens=len(frame.token_ids), error=frame.error.message if frame.error else "")


class Completions:
    """OpenAI's, as vLLM and llama-server extend it.

    Args:
        model: Name that the server knows the model by.
    """

    path = "/v1/completions"

    def __init__(self, model: str) -> None:
        self._model = model

    def encode(self, request: Request) -> bytes:
        """Return the body; `ignore_eos` lets no answer end early."""
        own = {
            "model": self._model,
            "prompt": request.token_ids,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
        }
        return msgspec.json.encode(_common_fields(request) | own)

    def decode(self, data: bytes) -> Arrival:
        """Read a chunk: one with text counts as a token until the usage says how many there were."""
        chunk = msgspec.json.decode(data, type=_Chunk)
        return Arrival(
            num_tokens=int(any(choice.text for choice in chunk.choices)),
            total=chunk.usage.completion_tokens if chunk.usage else None,
            error=chunk.error.message if chunk.error else "",
        )


def _common_fields(request: Request) -> dict[str, object]:
    params = request.params
    return {"max_tokens": params.max_tokens, "temperature": params.temperature, "seed": params.seed, "stream": True}


class _Failure(msgspec.Struct):
    message: str = ""


class _Frame(msgspec.Struct):
    token_ids: list[int] = []
    error: _Failure | None = None


class _Choice(msgspec.Struct):
    text: str = ""


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Failure | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def find_api_client(url: str, api: Api) -> ApiClient:
    """Return what the server at `url` speaks; `auto`: `/generate` if it knows that path.

    Raises:
        SettingError: nobody there, or it does not say which model it serves.
    """
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
        try:
            if api == "auto":
                is_unknown = client.post(Generate.path, json={}).status_code in (404, 405, 501)
                api = "completions" if is_unknown else "generate"
            if api == "generate":
                return Generate()
            answer = client.get("/v1/models")
            models = msgspec.json.decode(answer.content, type=_Models).data if answer.is_success else []
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SettingError(f"{url}: {error}; start a server there, or correct the URL") from error
        except msgspec.DecodeError as error:
            raise SettingError(f"{url}/v1/models: {error}; choose another --api") from error
    if not models:
        raise SettingError(f"{url}/v1/models: status {answer.status_code}, no model; correct the URL or --api")
    return Completions(models[0].id)
