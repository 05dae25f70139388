"""A vLLM engine for one mixture, and what vLLM's own HTTP handlers need to know of it."""

from __future__ import annotations

import asyncio
import logging
import os
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfmoe_ray.domains.prompt import alpaca_template
from selfmoe_ray.engine import orphans
from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.hardware import fast_dtype
from selfmoe_ray.mixture.gate import check_names
from selfmoe_ray.mixture.spec import MixtureSpec
from selfmoe_ray.run.storage import Storage
from selfmoe_ray.serving.config import ServeArgs
from selfmoe_ray.serving.http.names import ModelNames

if TYPE_CHECKING:
    from selfmoe_ray.base_model.outline import Outline

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
# Long enough for the error answers of a dead engine to leave.
LAST_WORDS_SECONDS = 1.0


@dataclass(frozen=True)
class RunningEngine:
    """A running engine: vLLM's client, its parsed server arguments, the mixture's names and spec."""

    client: Any
    vllm_args: Namespace
    names: ModelNames
    spec: MixtureSpec


@asynccontextmanager
async def running_engine(args: ServeArgs) -> AsyncIterator[RunningEngine]:
    """An engine that ends with the block. Raises UserError where the mixture cannot be served."""
    # Forking a process that has threads, as every server has, can lock up the child.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    orphans.claim()
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client

    from selfmoe_ray.mixture.checkpoint import read_spec

    with local_checkpoint(args.mixse_dir) as folder:
        args = preflight(args, folder)
        spec = read_spec(folder)
        names = ModelNames(args.name, spec.experts)
        vllm_args = make_vllm_args(args, folder, names)
        async with build_async_engine_client(vllm_args) as client:
            yield RunningEngine(client, vllm_args, names, spec)


def preflight(args: ServeArgs, folder: Path) -> ServeArgs:
    """`args`, their `max_model_len` no more than the base's context. Raises UserError where the mixture in a local
    folder, its base or `args` keep it from being served; no weight is read for it."""
    from selfmoe_ray.engine.preflight import check_base, check_dtype
    from selfmoe_ray.mixture.checkpoint import read_spec, resolve_base

    spec = read_spec(folder)
    check_names(spec.experts)
    check_dtype(args.engine.dtype, "engine.dtype", fast_dtype())
    outline = check_base(resolve_base(spec, args.base, args.engine.trust_remote_code))
    if args.chat_template == "base":
        check_chat_template(outline)
    asked, context = args.engine.max_model_len, outline.context_length
    if not asked or not context or asked <= context or "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in os.environ:
        return args
    logger.warning("engine.max_model_len: %d is more than the base's context; %d tokens are used", asked, context)
    return args.model_copy(update={"engine": args.engine.model_copy(update={"max_model_len": context})})


def check_chat_template(outline: Outline) -> None:
    """Raises UserError where the base's tokenizer has no chat template, or one that renders no turn of a user."""
    remedy = "set chat_template: alpaca, the layout that the experts were trained on"
    if not outline.tokenizer.chat_template:
        raise UserError(f"chat_template: base, but the tokenizer of {outline.base.path} has none; {remedy}")
    try:
        outline.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    except Exception as error:
        # A template is a program of its own, and may raise anything.
        raise UserError(
            f"chat_template: base, but that of {outline.base.path} cannot be rendered: {error}; {remedy}"
        ) from error


@contextmanager
def local_checkpoint(mixse_dir: str) -> Iterator[Path]:
    """The checkpoint as a local folder; a remote one is downloaded for as long as the block lasts."""
    parent, _, name = mixse_dir.rstrip("/").rpartition("/")
    with Storage(parent or ".").local_folder_to_read(name) as folder:
        yield folder


def make_vllm_args(args: ServeArgs, folder: Path, names: ModelNames) -> Namespace:
    """The arguments of vLLM's API server for a mixture; no request or log line of it holds a prompt."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    vllm_args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    for option, value in args.engine.model_dump().items():
        setattr(vllm_args, option, value)
    if args.engine.dtype == "auto" and not (fast := fast_dtype()).on_gpu:
        # vLLM's own auto is the checkpoint's, which few CPUs are fast in.
        vllm_args.dtype = fast.dtype
    vllm_args.model = str(folder)
    vllm_args.served_model_name = list(names.gates)
    vllm_args.hf_overrides = {"mixse_base": args.base} if args.base else {}
    # Caps answers whose request gives no max_tokens.
    vllm_args.override_generation_config = {"max_new_tokens": args.limits.max_tokens}
    if args.chat_template == "alpaca":
        vllm_args.chat_template = alpaca_template(_automatic_bos(folder, args.engine.trust_remote_code))
        vllm_args.chat_template_content_format = "string"
    validate_parsed_serve_args(vllm_args)
    return vllm_args


def _automatic_bos(folder: Path, trust_remote_code: bool) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    first = tokenizer("a").input_ids[0]
    return str(tokenizer.bos_token) if first == tokenizer.bos_token_id else ""


async def watch(client: Any, on_death: Callable[[], None]) -> None:
    """Call `on_death` once the engine's processes are gone and its last answers have left."""
    while not client.errored:
        await asyncio.sleep(WATCH_SECONDS)
    logger.error("the engine is dead; this process follows")
    await asyncio.sleep(LAST_WORDS_SECONDS)
    on_death()
