"""What a body must look like. Types are strict, unknown fields refused, and no error quotes a value that was sent."""

import difflib
import json
import re
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from service.errors import BadRequest
from service.protocol import Priority

MAX_PROMPTS = 64
MAX_CHOICES = 16
MAX_STOP = 8
MAX_STOP_CHARS = 64
MAX_LOGIT_BIAS = 300
MAX_LOGPROBS = 20
MAX_GRAMMAR_CHARS = 16_384
MIN_TEMPERATURE = 1e-4
"""Under it the likeliest token has all the probability there is, and a division by it could overflow."""
_ID_PATTERN = r"^(0|[1-9][0-9]{0,8})$"
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no character") from None
    return text


def _id_key(key: str) -> str:
    if not re.fullmatch(_ID_PATTERN, key):
        raise ValueError('its keys are token ids, e.g. {"17": -100}')
    return key


def _temper(temperature: float) -> float:
    return temperature if temperature >= MIN_TEMPERATURE else 0.0


def _as_json(schema: object) -> str:
    if not isinstance(schema, dict):
        raise ValueError('must be an object, e.g. {"type": "integer"}')
    try:
        text = json.dumps(schema)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if len(text) > MAX_GRAMMAR_CHARS:
        raise ValueError(f"should have at most {MAX_GRAMMAR_CHARS} characters")
    return text


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(_unicode)]
StopString = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_CHARS)]
StopStrings = Annotated[
    list[StopString],
    Field(max_length=MAX_STOP),
    BeforeValidator(_as_list, json_schema_input_type=StopString | list[StopString]),
]
Regex = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS), AfterValidator(_unicode)]
JsonSchema = Annotated[str, BeforeValidator(_as_json), WithJsonSchema({"type": "object"})]
IdKey = Annotated[str, AfterValidator(_id_key), WithJsonSchema({"type": "string", "pattern": _ID_PATTERN})]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class GenerateBody(BaseModel):
    """The body of `POST /generate`: exactly one of `prompt`, `prompts`, `token_ids`; `null` anywhere is the default."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: Text | None = Field(None, description="Text to continue; an empty one starts a new text.")
    prompts: Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)] | None = None
    token_ids: Annotated[list[int], Field(fail_fast=True)] | None = Field(None, description="The prompt as token ids.")
    model: Text | None = Field(None, description="Name of a served model; may be left out where there is only one.")
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None,
        description="Tokens to generate at most; by default 128, or as many as the context still holds. 0: with echo.",
    )
    temperature: Annotated[float, Field(ge=0, le=100), AfterValidator(_temper)] | None = Field(
        None, description="0: always the likeliest token."
    )
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(None, description="0: no limit.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[IdKey, Bias], Field(max_length=MAX_LOGIT_BIAS)] | None = Field(
        None, description="Token id → what is added to its logit."
    )
    stop: StopStrings | None = Field(None, description="The text ends before the first of these.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(None, description="Drawn, and returned, if left out.")
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(None, description="Choices for each prompt.")
    echo: bool | None = Field(None, description="Put the prompt in front of the text.")
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    deadline_s: Annotated[float, Field(gt=0, le=86_400)] | None = Field(
        None, description="Seconds after which the answer is not wanted any more."
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None,
        description="Tell each token's log-probability, and of so many likeliest ones; with echo also of the prompt's.",
    )
    regex: Regex | None = Field(None, description="Expression that the whole text matches, in Rust's syntax.")
    json_schema: JsonSchema | None = Field(None, description="JSON schema that the text fulfils.")
    priority: Priority | None = Field(
        None, description="How long others may pass it in the queue: hardly, some seconds, or a minute at most."
    )
    background: bool | None = Field(
        None,
        description="Answer 202 at once, with the address of the stream; nothing ends it but DELETE or its deadline.",
    )


def parse_generate(body: bytes) -> GenerateBody:
    """Read the body of `POST /generate`.

    Raises:
        BadRequest: not JSON, an unknown or repeated field, a wrong type, a value out of range, fields that exclude
            each other.
    """
    fields = load_object(body)
    unknown = fields.keys() - GenerateBody.model_fields.keys()
    if unknown:
        _refuse_unknown(min(unknown))
    try:
        wanted = GenerateBody.model_validate(fields)
    except ValidationError as error:
        _refuse_invalid(error)
    _refuse_combination(wanted)
    return wanted


def load_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object, strictly: UTF-8, no NaN or Infinity, no key twice, not nested beyond reason.

    Raises:
        BadRequest: it is none.
    """
    try:
        value = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise BadRequest("body: not UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BadRequest(f"body: not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise BadRequest("body: nested too deep") from None
    except ValueError:
        raise BadRequest("body: a number has too many digits") from None
    if not isinstance(value, dict):
        raise BadRequest('body: must be a JSON object, e.g. {"prompt": "Once"}')
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise BadRequest("body: a key stands twice in one object")
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise BadRequest(f"body: {name} is no JSON number")


def _refuse_unknown(name: str) -> NoReturn:
    if not _FIELD_NAME.fullmatch(name):
        raise BadRequest("body: a field that this server does not know")
    close = difflib.get_close_matches(name, GenerateBody.model_fields, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise BadRequest(f"{name}: this server knows no such field{hint}", param=name)


def _refuse_combination(wanted: GenerateBody) -> None:
    if sum(given is not None for given in (wanted.prompt, wanted.prompts, wanted.token_ids)) != 1:
        raise BadRequest("give exactly one of prompt, prompts and token_ids", param="prompt")
    if wanted.regex is not None and wanted.json_schema is not None:
        raise BadRequest("give regex or json_schema, not both", param="regex")
    if wanted.stream and wanted.background:
        raise BadRequest("give stream or background, not both: the stream of the latter is read apart", param="stream")
    if wanted.max_tokens == 0 and not wanted.echo:
        raise BadRequest("max_tokens: 0 needs echo; without, there is nothing to answer", param="max_tokens")


def _refuse_invalid(error: ValidationError) -> NoReturn:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = str(first["loc"][0])
    place = "".join(f"[{part}]" for part in first["loc"][1:] if isinstance(part, int))
    reason = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
    raise BadRequest(f"{field}{place}: {reason}", param=field) from None
