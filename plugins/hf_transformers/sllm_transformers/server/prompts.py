"""From what a client sent to token ids."""

from __future__ import annotations

from collections.abc import Sequence

from sllm_transformers.generation import LanguageModel
from sllm_transformers.server.errors import ApiError
from sllm_transformers.server.schema import ChatRequest, CompletionRequest

UNLIMITED_CONTEXT_TOKENS = 1024
"""Most tokens of an answer for which neither the client nor the model sets a limit."""


def completion_ids(model: LanguageModel, request: CompletionRequest) -> list[int]:
    """Token ids of a completion's prompt.

    Raises:
        ApiError: several prompts, none, or ids that are no tokens.
    """
    try:
        prompt = request.one_prompt
    except ValueError as error:
        raise ApiError(400, str(error), param="prompt") from None
    ids = list(model.tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else prompt
    size = model.model.get_input_embeddings().num_embeddings
    for token_id in ids:
        if token_id >= size:
            raise ApiError(
                400, f"token id {token_id} is outside the vocabulary of {size}", param="prompt"
            )
    if not ids:
        raise ApiError(400, "the prompt is empty", param="prompt")
    return ids


def chat_ids(model: LanguageModel, request: ChatRequest) -> list[int]:
    """Token ids of a conversation, as the model's chat template writes it.

    Raises:
        ApiError: the tokenizer has no template, or the template refuses the messages.
    """
    import jinja2

    if not model.tokenizer.chat_template:
        raise ApiError(
            400, "the model's tokenizer has no chat template: use /v1/completions", param="messages"
        )
    try:
        ids: list[int] = model.tokenizer.apply_chat_template(
            [message.for_template() for message in request.messages],
            add_generation_prompt=True,
            return_dict=False,
            **request.chat_template_kwargs,
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise ApiError(
            400, f"the chat template refuses the messages: {error}", param="messages"
        ) from error
    return ids


def tokens_left(
    model: LanguageModel, prompt_ids: Sequence[int], wanted: int | None, prompt_field: str
) -> int:
    """How many tokens to generate: `wanted`, or all that fit.

    Args:
        prompt_field: the request's field that holds the prompt.

    Raises:
        ApiError: it would not fit the model's context.
    """
    limit = model.context_length
    if limit is None:
        return wanted or UNLIMITED_CONTEXT_TOKENS
    room = limit - len(prompt_ids)
    if room < (wanted or 1):
        asked = f" and {wanted} to be generated" if wanted else ""
        raise ApiError(
            400,
            f"this model's context holds {limit} tokens; the prompt has {len(prompt_ids)}{asked}",
            code="context_length_exceeded",
            param="max_tokens" if room >= 1 else prompt_field,
        )
    return wanted or room
