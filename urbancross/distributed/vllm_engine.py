"""One vLLM engine in an actor: questions in, texts out; a dead engine is replaced, a bad question costs only itself."""

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from urbancross.captions import prompts
from urbancross.captions.captioner import Question
from urbancross.errors import ConfigError, EngineError, TileError

log = logging.getLogger(__name__)

LIVES = 3  # engines that one batch may use up
# On CPUs, vLLM 0.32 dies at a prompt that it cuts in two ("CPU Generator does not use offset") when a seed is set.
CPU = {
    "enforce_eager": True,
    "kv_cache_memory_bytes": 1 << 30,
    "enable_chunked_prefill": False,
    "mm_processor_cache_gb": 0.5,
}


class VllmEngine:
    """Holds a `vllm.LLM`; built inside the actor, since loading takes seconds to minutes and the engine gigabytes."""

    def __init__(
        self,
        model: str,
        temperature: float,
        max_tokens: int,
        max_chars: int,
        on_gpu: bool,
        tensor_parallel: int = 1,
        revision: str | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        """Load the model and ask it once.

        Raises:
            ConfigError: vLLM is not installed, or the model cannot be loaded or takes no images.
        """
        _quiet(on_gpu, Path(model).is_dir())
        self.model, self.temperature, self.max_tokens = model, temperature, max_tokens
        self.schema = prompts.answer_schema(max_chars)
        told = {"revision": revision, "max_model_len": max_model_len, "max_num_seqs": max_num_seqs}
        self.arguments: dict[str, Any] = {
            "limit_mm_per_prompt": {"image": 1, "video": 0},
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
            **({"tensor_parallel_size": tensor_parallel} if tensor_parallel > 1 else {}),
            **({} if on_gpu else CPU),
            **({} if on_gpu or not _one_process() else {"distributed_executor_backend": "uni"}),
            **{key: value for key, value in told.items() if value is not None},
            **(engine_args or {}),
        }
        self.last_words = ""
        self.went_on: Callable[[], None] = lambda: None
        self.nowhere = open(os.devnull, "w")  # noqa: SIM115 as long as the engine lives
        self.llm = self._load()
        self._try_out()

    def _load(self) -> Any:
        try:
            from vllm import LLM
        except ImportError as error:
            raise ConfigError(
                f"vLLM cannot be imported here ({error}); install it with: pip install 'urbancross[vllm]' on machines "
                "with GPUs, make setup on others"
            ) from None
        try:
            llm = LLM(self.model, **self.arguments)
        except Exception as error:  # vLLM and transformers raise whatever is at hand
            raise ConfigError(f"--model {self.model} cannot be loaded by vLLM: {_line(error)}") from error
        _tell_of_death(llm)
        return llm

    def _try_out(self) -> None:
        """Ask about a grey square: a model that takes no images, or a schema that vLLM cannot hold, shows now, not as a
        million failed tiles.

        Raises:
            ConfigError: the model cannot answer.
        """
        grey = np.full((224, 224, 3), 128, np.uint8)
        chat, sampling = self._asked(Question(b"", grey, prompts.prompt([], []), seed=0))
        sampling.max_tokens = 1
        try:
            (answer,) = self._chat([(chat, sampling)])
        except Exception as error:
            raise ConfigError(f"--model {self.model} answers no question with an image: {_line(error)}") from error
        if isinstance(answer, TileError):
            raise ConfigError(f"--model {self.model} cannot answer under the schema ({answer}); another --max-chars?")

    def __call__(self, questions: Sequence[Question]) -> list[str | TileError]:
        """Answer a batch; where engine after engine dies at it, one by one, to find the question that it is.

        Raises:
            EngineError: engines die at several questions of the batch, so it is not them.
        """
        for _ in range(LIVES):
            if (answers := self._survived(questions)) is not None:
                return answers
        answers, deaths = [], 0
        for question in questions:
            answer = self._survived([question])
            deaths += answer is None
            if deaths == LIVES:
                raise EngineError(f"vLLM dies at whatever it is asked: {self.last_words}; run it alone to see why")
            answers += answer or [TileError(f"vLLM dies at it: {self.last_words}")]
        return answers

    def _survived(self, questions: Sequence[Question]) -> list[str | TileError] | None:
        """Answers, or None where the engine died at these questions; there is a new one then."""
        try:
            return self._answers(questions)
        except Exception as error:  # of a dead engine any kind: its own, a worker's, torch's
            self.last_words = _line(error)
            log.warning("the vLLM engine died (%s); loading it anew", self.last_words)
            self.llm = None  # its processes end with it
            gc.collect()
            self.llm = self._load()
            return None

    def _answers(self, questions: Sequence[Question]) -> list[str | TileError]:
        """All at once; one by one where one of them makes vLLM refuse them all, as its API does."""
        from vllm.exceptions import VLLMClientError

        asked = [self._asked(question) for question in questions]
        try:
            return self._chat(asked)
        except (ValueError, TypeError, VLLMClientError) as error:  # the engine is well; any other exception ends it
            if len(questions) == 1:
                return [TileError(f"the model takes no such question: {_line(error)}")]
        return [answer for question in questions for answer in self._answers([question])]

    def _chat(self, asked: Sequence[tuple[list[dict[str, Any]], Any]]) -> list[str | TileError]:
        outputs = self.llm.chat([chat for chat, _ in asked], [sampling for _, sampling in asked], use_tqdm=self._bar)
        return [
            TileError("vLLM ended it with an error") if answer.finish_reason == "error" else answer.text
            for answer in (output.outputs[0] for output in outputs)
        ]

    def _bar(self, *arguments: Any, **named: Any) -> tqdm:
        """What vLLM takes for its progress bar: it draws nothing and tells the worker that the batch moves."""
        bar = tqdm(*arguments, **{**named, "file": self.nowhere, "mininterval": 3600})
        draw = bar.update

        def update(count: float | None = 1) -> bool | None:
            self.went_on()
            return draw(count)

        bar.update = update
        return bar

    def _asked(self, question: Question) -> tuple[list[dict[str, Any]], Any]:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        sampling = SamplingParams(
            temperature=self.temperature,
            seed=question.seed,
            max_tokens=self.max_tokens,
            structured_outputs=StructuredOutputsParams(json=self.schema),
        )
        picture = {"type": "image_pil", "image_pil": Image.fromarray(question.pixels)}
        return prompts.question(picture, question.text), sampling


def _tell_of_death(llm: Any) -> None:
    """Wake whoever waits for the answer of an engine that was killed: vLLM 0.32 notes its death, and tells only those
    who ask after it."""
    from vllm.v1.engine.exceptions import EngineDeadError

    client = llm.llm_engine.engine_core
    answers, resources = getattr(client, "outputs_queue", None), getattr(client, "resources", None)
    if answers is None or resources is None:  # the engine lives in this process
        return

    def watch() -> None:
        while not resources.engine_dead:  # it is told so too when the client closes
            time.sleep(0.2)
        answers.put_nowait(EngineDeadError())

    threading.Thread(target=watch, name="engine watch", daemon=True).start()


def _one_process() -> bool:
    return os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def _quiet(on_gpu: bool, is_folder: bool) -> None:
    """vLLM's settings that only its environment takes; what the user has set stays."""
    wanted = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    if is_folder:
        wanted["HF_HUB_OFFLINE"] = "1"
    # On GPUs the engine is a process of its own, so that a crash in CUDA does not take the actor along; on CPUs it
    # lives in the actor, on the threads that Ray gives it.
    wanted["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if on_gpu else "0"
    if not on_gpu:
        wanted["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    for key, value in wanted.items():
        os.environ.setdefault(key, value)


def _line(error: BaseException) -> str:
    """The first line of an exception that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
