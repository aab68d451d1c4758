"""What clients send: OpenAI's requests, as far as this engine can serve them faithfully.

A field that OpenAI's API has and this engine has not is accepted at its neutral value and refused
at any other: nothing that a client asks for is silently ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from sllm_transformers.generation.params import SamplingParams

TokenId = Annotated[int, Field(ge=0)]

MAX_STOPS = 16


class StreamOptions(BaseModel):
    """``include_usage`` adds a last chunk with token counts."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class _Request(BaseModel):
    """What both routes take. `neutral` lists unsupported fields and the values that mean "off"."""

    model_config = ConfigDict(extra="forbid")

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "n": (1,),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "logit_bias": ({},),
        "logprobs": (False,),
    }

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    user: str | None = None
    metadata: dict[str, str] | None = None

    n: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None
    logprobs: Any = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings")
        if stop == "" or (isinstance(stop, list) and "" in stop):
            raise ValueError("a stop string must not be empty")
        return stop

    @field_validator("*", mode="before")
    @classmethod
    def _only_what_we_can(cls, value: Any, info: ValidationInfo) -> Any:
        neutral = cls.neutral.get(info.field_name or "", (value,))
        if value is not None and value not in neutral:
            raise ValueError(f"{value!r} is not supported by the transformers engine")
        return value

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> _Request:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, max_tokens: int) -> SamplingParams:
        """The engine's view of the request."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0 if self.top_k == -1 else self.top_k,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            ignore_eos=self.ignore_eos,
        )


class CompletionRequest(_Request):
    """POST /v1/completions. The prompt is one text or one list of token ids."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **_Request.neutral,
        "echo": (False,),
        "best_of": (1,),
        "suffix": ("",),
    }

    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    echo: Any = None
    best_of: Any = None
    suffix: Any = None

    @property
    def one_prompt(self) -> str | list[int]:
        """The prompt, taken out of a batch of one.

        Raises:
            ValueError: there are several.
        """
        prompt: Any = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise ValueError("one prompt a request, please: send several requests")
            prompt = prompt[0]
        result: str | list[int] = prompt
        return result


class TextPart(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation; text only. Further fields go to the chat template."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[TextPart] | None = None

    def for_template(self) -> dict[str, Any]:
        """What chat templates expect: content as one string."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        return {"role": self.role, "content": content or "", **(self.model_extra or {})}


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **_Request.neutral,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "response_format": ({"type": "text"},),
        "top_logprobs": (0,),
        "modalities": (["text"],),
        "store": (False,),
    }

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    response_format: Any = None
    top_logprobs: Any = None
    modalities: Any = None
    store: Any = None

    @property
    def limit(self) -> int | None:
        """Most tokens to generate; None: as many as the context holds."""
        return self.max_completion_tokens or self.max_tokens
