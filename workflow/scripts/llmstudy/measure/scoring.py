"""Log-probabilities of a model over the windows of a token stream, in fp32 whatever the model computes in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import torch

from llmstudy import llama, runtimes
from llmstudy.measure.session import Session, log, trim_heap
from llmstudy.measure.text import TokenStream, openings, windows
from llmstudy.progress import progress
from llmstudy.runner.job import Workload

# Called with what ``score`` yields.
Take = Callable[[slice, torch.Tensor, torch.Tensor], None]

# Rows of [rows, vocabulary] fp32 log-probabilities that exist at a time. On a CPU larger temporaries are mapped afresh
# by the allocator each time, which costs more than the arithmetic; a GPU wants enough work per launch.
ROWS = {"cpu": 32, "cuda": 512}


@dataclass(frozen=True)
class Protocol:
    """The windows that a text is cut into: ``window`` input tokens, of which each begins ``stride`` after the last."""

    window: int
    stride: int

    def name(self, bos: int | None) -> str:
        """Return the label in records and tables; ``bos``: the token that begins every window, None for no such."""
        return llama.protocol_name(asdict(self), bos is not None)


@dataclass(frozen=True)
class Decode:
    """Forced tokens: text that a runtime is made to generate, so that its token step is scored.

    ``new_tokens`` after each of ``prompts`` prompts of ``prompt_tokens`` tokens; for each of ``batches``, in batches of
    that size, and for batch 0 in one pass over each text. Every new token but the first is scored, which comes from the
    prompt's pass.
    """

    batches: tuple[int, ...]
    prompts: int
    prompt_tokens: int
    new_tokens: int

    @property
    def scored(self) -> int:
        """Return the scored tokens of a prompt."""
        return self.new_tokens - 1

    @property
    def tokens(self) -> int:
        """Return the scored tokens in all."""
        return self.prompts * self.scored

    def name(self, bos: int | None, batch: int) -> str:
        """Return the label in records and tables, for a batch size; for 0 that of one pass over the same text."""
        return llama.protocol_name(asdict(self) | {"batch": batch}, bos is not None)

    def text(self, session: Session, corpus: str, bos: int | None) -> tuple[torch.Tensor, TokenStream]:
        """Return (ids int64 [prompts, prompt_tokens + new_tokens] on the device, the scored text); with ``bos``, the id
        of the beginning-of-text token, a prompt begins with it and has one real token less."""
        start = torch.tensor([] if bos is None else [bos], dtype=torch.int64, device=session.device)
        tokens = self.prompt_tokens + self.new_tokens - len(start)
        stream = openings(session, corpus, self.prompts, tokens, self.scored)
        ids = torch.from_numpy(stream.ids.reshape(self.prompts, -1)).to(session.device)
        return torch.cat([start.expand(self.prompts, -1), ids], dim=1), stream

    def score(
        self, session: Session, model, ids: torch.Tensor, batch: int, take: Take, until: int | None = None
    ) -> None:
        """Give ``take`` what the job's runtime predicts while it decodes ``ids``, in an order that ``in_text_order``
        undoes; for ``batch`` 0 what one forward pass of the library over each text predicts, in the order of the text.
        All of it, whatever ``until``."""
        if not batch:
            for number, row in enumerate(ids):
                with torch.no_grad(), session.attention_forced(), finite_logits(model):
                    logits = model(row[None, :-1], use_cache=False, logits_to_keep=self.scored).logits[0]
                positions = slice(number * self.scored, (number + 1) * self.scored)
                take(positions, torch.log_softmax(logits.float(), dim=-1), row[-self.scored :])
            return
        done = 0

        def step(number: int, logits: torch.Tensor) -> None:
            nonlocal done
            if number:
                positions, done = slice(done, done + batch), done + batch
                take(positions, torch.log_softmax(logits.float(), dim=-1), tokens[:, number])

        # Other runtimes capture or compile the model's step, which a hook with a synchronization would break.
        library = session.job.identity.runtime == runtimes.BASE
        watched = finite_logits(model) if library else nullcontext()
        with watched, session.runtime(model, Workload(batch, self.prompt_tokens, self.new_tokens)) as runtime:
            runtime.prepare()
            parts = ids.split(batch)
            for part in progress(parts, what="batches decoded", total=len(parts), unit="batch"):
                tokens = part[:, self.prompt_tokens :]
                runtime.score(part[:, : self.prompt_tokens], tokens, step)

    def in_text_order(self, values: np.ndarray, batch: int) -> np.ndarray:
        """Return what was scored [batches × steps × batch] in the order of the text, prompt after prompt."""
        return values.reshape(-1, self.scored, batch).swapaxes(1, 2).reshape(-1)


def score(
    session: Session, model, stream: TokenStream, protocol: Protocol, bos: int | None
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Yield (positions, log_probabilities fp32 [rows, vocabulary], targets int64 [rows]) in stream order.

    ``positions`` counts scored tokens from 0: token 1 of the stream is position 0. With ``bos``, the id of the
    beginning-of-text token, every window begins with it and has one real token less of context. Raise
    FloatingPointError where logits are not finite.
    """
    rows = ROWS[session.device]
    ids = torch.from_numpy(stream.ids).to(session.device)
    start = torch.tensor([] if bos is None else [bos], dtype=ids.dtype, device=session.device)
    width = protocol.window - len(start)
    plan = list(windows(len(ids), width, min(protocol.stride, width)))
    for window in progress(plan, what="windows scored", total=len(plan), unit="window"):
        inputs = torch.cat([start, ids[window.begin : window.end]])
        # Not inference_mode around a yield: grad mode is per thread and would leak into the caller.
        with torch.no_grad(), session.attention_forced(), finite_logits(model):
            logits = model(inputs[None], use_cache=False, logits_to_keep=window.scored).logits[0]
        logits = logits.to(session.device)  # from the last GPU of a model that is split over several
        first = window.end - window.scored
        for low in range(0, window.scored, rows):
            high = min(low + rows, window.scored)
            log_probabilities = torch.log_softmax(logits[low:high].float(), dim=-1)
            yield slice(first + low, first + high), log_probabilities, ids[first + low + 1 : first + high + 1]
        del logits  # or those of two windows exist while the next one is computed
        trim_heap()


def score_windows(
    session: Session,
    model,
    stream: TokenStream,
    protocol: Protocol,
    bos: int | None,
    take: Take,
    until: int | None = None,
) -> None:
    """Give ``take`` what ``score`` yields, up to the rows that hold position ``until`` - 1; all of it for None."""
    for positions, log_probabilities, targets in score(session, model, stream, protocol, bos):
        if until is not None and positions.start >= until:
            break
        take(positions, log_probabilities, targets)


@contextmanager
def finite_logits(model) -> Iterator[None]:
    """Within this context, raise FloatingPointError, which names the layer, where logits that the model returns hold
    NaN or infinity; an entry of minus infinity is a token that the model rules out."""

    def check(module, args, kwargs, output):
        if not output.logits.amax(-1).isfinite().all():
            hook.remove()
            raise FloatingPointError(f"not finite at {first_not_finite(model, args, kwargs)}")

    hook = model.register_forward_hook(check, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def first_not_finite(model, args: tuple, kwargs: dict) -> str:
    """Return the first module, in the order of computing, whose output is not finite: the forward pass is repeated,
    without cache."""
    found: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def look(module, args, output):
        output = output[0] if isinstance(output, tuple | list) and output else output
        if not found and isinstance(output, torch.Tensor) and not output.isfinite().all():
            own = [one for one in module.parameters(recurse=False) if type(one) is torch.nn.Parameter]
            what = "its output" if all(one.isfinite().all() for one in own) else "its weights"
            layer = re.search(r"\.(\d+)\.", names[module])
            where = f"layer {layer[1]} ({names[module]})" if layer else names[module]
            found.append(f"{where}, {what} in {str(output.dtype).removeprefix('torch.')}")

    hooks = [module.register_forward_hook(look) for module in names if not list(module.children())]
    try:
        with torch.no_grad():
            model(
                *args, **{key: kwargs[key] for key in ("input_ids", "attention_mask") if key in kwargs}, use_cache=False
            )
    except Exception as error:  # the failure that is reported is the first one
        log(f"the forward pass could not be repeated: {error}")
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "the logits"


def true_token(log_probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of the token that follows, [rows]."""
    return log_probabilities.gather(1, targets[:, None])[:, 0]
