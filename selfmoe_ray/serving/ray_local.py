"""`selfmoe serve`: the newest finished run behind the OpenAI API on this machine, until Ctrl-C."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any

from selfmoe_ray.errors import UserError
from selfmoe_ray.machines.ray_session import ray_session
from selfmoe_ray.run.run_dir import RunDir
from selfmoe_ray.serving.config import ServeArgs, parse_serve_args

REASON_LINES = 12


def serve_run(run: str | None, root: str, config: str, port: int | None, verbose: bool = False) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises UserError where the run, the config or the port is wrong.

    run: its folder, the newest finished one below `root` if None. config: a Serve config file, whose port `port`
    takes the place of.
    """
    from selfmoe_ray.serving.server import preflight

    settings = read_config(config)
    folder = Path(run) if run else newest_run(Path(root))
    values = {**settings["applications"][0]["args"], "mixse_dir": str((folder / "mixse").absolute())}
    values["engine"] = {"trust_remote_code": trusts_code(folder), **values.get("engine", {})}
    args = parse_serve_args({**values, "name": folder.absolute().name}, config)
    preflight(args, Path(args.mixse_dir))
    http = settings["http_options"] | ({"port": port} if port else {})
    check_port(http["host"], http["port"])
    print(f"Serving {args.mixse_dir}; the engine takes about a minute to start ...", flush=True)
    with ray_session(verbose):
        from ray import serve

        # Both: a shell starts what it puts into the background with SIGINT ignored.
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, _interrupt)
        try:
            _deploy(settings, args, http)
            print(welcome(args, f"http://{http['host']}:{http['port']}"), flush=True)
            while True:
                signal.pause()
        except KeyboardInterrupt:
            print("\nStopping ...", flush=True)
        finally:
            serve.delete(settings["applications"][0]["name"])


def trusts_code(run: Path) -> bool:
    """Whether a run was made with `trust_remote_code`."""
    found = RunDir(str(run.absolute().parent), run.absolute().name).read_config() or {}
    return bool(found.get("trust_remote_code"))


def read_config(path: str) -> dict[str, Any]:
    """A Serve config file. Raises UserError where it cannot be read or is none."""
    import yaml

    try:
        config = yaml.safe_load(Path(path).read_text())
        config["applications"][0]["args"], config["http_options"]["host"], config["http_options"]["port"]
    except OSError as error:
        raise UserError(f"--config: cannot read {path!r}: {error.strerror}") from None
    except (yaml.YAMLError, KeyError, TypeError, IndexError):
        raise UserError(f"{path}: no Serve config with http_options and applications; see serve_configs/") from None
    return config


def newest_run(root: Path) -> Path:
    """The run whose mixture was finished last. Raises UserError where there is none."""
    finished = sorted(root.glob("*/mixse/manifest.json"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise UserError(f"no finished run below {root.absolute()}; `make demo` makes one, --run names another")
    return finished[-1].parents[1]


def check_port(host: str, port: int) -> None:
    """Raises UserError where something listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} on {host} cannot be used ({error.strerror}); choose another: --port"
            ) from None


def welcome(args: ServeArgs, address: str) -> str:
    """What to do now."""
    key = ' -H "Authorization: Bearer $KEY"' if args.api_key_env or args.api_key_file else ""
    question = json.dumps({"model": args.name, "messages": [{"role": "user", "content": "Name three primes."}]})
    return (
        f"\nReady. Ask it something:\n\n  curl {address}/v1/chat/completions{key} "
        f"-H 'Content-Type: application/json' -d '{question}'\n\n"
        f"Playground: {address}/\nModels:     {address}/v1/models\nCtrl-C stops."
    )


def _deploy(config: dict[str, Any], args: ServeArgs, http: dict[str, Any]) -> None:
    from ray import serve

    from selfmoe_ray.serving.ray_serve import DEPLOYMENT, application

    described = config["applications"][0]
    entries = {entry["name"]: entry for entry in described.get("deployments", [])}
    options = entries.get(DEPLOYMENT["name"], {})
    serve.start(config["proxy_location"], http, controller_options=config.get("controller_options"))
    try:
        # Here the cause is to be mended, not to be waited for.
        app = application(args, **{"max_constructor_retry_count": 1, **options})
        serve.run(app, name=described["name"], route_prefix=described["route_prefix"])
    except RuntimeError as error:
        # Serve gives the replica's traceback as text; its end says what is wrong.
        reason = "\n".join(f"  {line}" for line in str(error).strip().splitlines()[-REASON_LINES:])
        raise UserError(
            f"the engine did not start; --verbose shows all of its output. The end of it:\n{reason}"
        ) from None


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt
