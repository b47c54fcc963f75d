"""A vision-language model behind an OpenAI-compatible server, such as `vllm serve`: questions in, texts out."""

import math
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any

import openai

from urbancross.captions import prompts
from urbancross.captions.captioner import Question
from urbancross.errors import ConfigError, EngineError, TileError

LONGEST_PAUSE_S = 60.0


class OpenAiEngine:
    """Asks a server many questions at once; waits where it is busy or away, for as long as the budget lasts."""

    def __init__(
        self,
        endpoint: str,
        model: str,
        temperature: float,
        max_tokens: int,
        max_chars: int,
        concurrency: int,
        timeout_s: float,
        retry_minutes: float,
    ) -> None:
        self.model, self.temperature, self.max_tokens = model, temperature, max_tokens
        self.schema = prompts.answer_schema(max_chars)
        self.budget_s = 60 * retry_minutes
        self.endpoint = endpoint
        key = os.environ.get("OPENAI_API_KEY") or "none"  # servers of one's own want none
        self.key, self.answered = key, False
        self.client = openai.OpenAI(base_url=endpoint, api_key=key, timeout=timeout_s, max_retries=0)
        self.pool = ThreadPoolExecutor(concurrency)
        self.went_on: Callable[[], None] = lambda: None

    def __call__(self, questions: Sequence[Question]) -> list[str | TileError]:
        """Answer a batch.

        Raises:
            ConfigError: the server knows no such model, or wants another key.
            EngineError: the server stays busy or away for longer than the budget of one question.
        """
        answers: list[str | TileError] = []
        for answer in self.pool.map(self._answer, questions):
            self.went_on()
            answers.append(answer)
        return answers

    def _answer(self, question: Question) -> str | TileError:
        deadline = time.monotonic() + self.budget_s
        for attempt in range(10_000):
            try:
                return self._complete(question)
            except (openai.AuthenticationError, openai.PermissionDeniedError):
                raise ConfigError(f"{self.endpoint} refuses the key; set OPENAI_API_KEY on every node") from None
            except openai.NotFoundError:
                raise ConfigError(
                    f"{self.endpoint} has no model {self.model}; see {self.endpoint}/models for what it serves"
                ) from None
            except (
                openai.APIConnectionError,
                openai.RateLimitError,
                openai.InternalServerError,
                openai.APIResponseValidationError,
            ) as error:
                if isinstance(error, openai.APIResponseValidationError) and not self.answered:
                    raise ConfigError(
                        f"{self.endpoint} does not answer as an OpenAI-compatible server; does --endpoint end in /v1?"
                    ) from None
                pause = pause_s(error, attempt)
                if time.monotonic() + pause > deadline:
                    raise EngineError(
                        f"{self.endpoint} gave no answer in {self.budget_s / 60:g} minutes ({self._said(error)}); "
                        "see to it and run the same command again to go on"
                    ) from None
                time.sleep(pause)
            except openai.APIStatusError as error:  # 400, 413, 422: this question, not the server
                return TileError(f"the model takes no such question: {self._said(error)}")
        raise EngineError(f"{self.endpoint} gave no answer")

    def _complete(self, question: Question) -> str:
        schema = {"name": "answer", "schema": self.schema, "strict": True}
        request: dict[str, Any] = {
            "model": self.model,
            "messages": prompts.messages(question.image, question.text),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": question.seed,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
        raw = self.client.chat.completions.with_raw_response.create(**request)
        try:
            choices = raw.http_response.json()["choices"]
            text = choices[0]["message"]["content"] if choices else ""
            if not isinstance(text, str | None):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise openai.APIResponseValidationError(raw.http_response, None, message="no chat completion") from None
        self.answered = True
        return text or ""

    def _said(self, error: openai.APIError) -> str:
        """What went wrong, without what was sent: a server may quote the request, image, key and all."""
        status = getattr(error, "status_code", None)
        body = getattr(error, "body", None)
        said = body.get("message") if isinstance(body, dict) else None
        text = " ".join(str(said or error.message).split())
        text = re.sub(r"(Bearer|Basic) \S+", r"\1 ...", text.replace(self.key, "..."))[:200]
        return f"{status} {text}" if status else text


def pause_s(error: openai.APIError, attempt: int) -> float:
    """How long to wait before the next try: what the server says in `Retry-After`, else twice as long every time."""
    response = getattr(error, "response", None)
    told = response.headers.get("retry-after") if response is not None else None
    if told is not None:
        try:
            if math.isfinite(seconds := float(told)):
                return max(seconds, 0.0)
        except ValueError:
            pass
        try:
            return max(parsedate_to_datetime(told).timestamp() - time.time(), 0.0)
        except ValueError:
            pass
    return min(2.0**attempt, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
