"""Serve reward experts: ``python -m src.serve_rewards rewards=shapes port=8000``; docs/SERVING.md.

A run uses them with the same `rewards=` and ``rewards.remote.url=http://127.0.0.1:8000``.

    python -m src.serve_rewards rewards=shapes
    python -m src.serve_rewards rewards=shapes host=0.0.0.0 token_file=token.txt workers=2
"""

from __future__ import annotations

import importlib.util
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING

from src.cli import command as cli
from src.config.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def serve_rewards(config: DictConfig) -> int:
    """Serve until interrupted; returns the exit code.

    Raises:
        UserError: for what is wrong with the settings, a port that is taken, an expert that cannot be made.
    """
    if importlib.util.find_spec("litserve") is None:
        raise UserError('serving needs an extra that is not installed: pip install -e ".[serve]"')
    from src import build
    from src.rewards.remote import is_loopback
    from src.rewards.wire import HEALTH_PATH, Limits

    token = build.remote_token(config.token_file)
    if token is None and not is_loopback(config.host):
        raise UserError(
            f"host={config.host}: other machines could use this server; give a token by token_file=... or the"
            f" environment variable {build.TOKEN_VARIABLE}, or listen on 127.0.0.1"
        )
    if config.rewards.remote.url is not None:
        raise UserError("rewards.remote.url: a server scores by itself; leave it out here")
    build.checked_devices(config.rewards)
    check_free(config.host, config.port)
    from src.serve_rewards.server import ScoringAPI, serve

    rewards = build.plain(config.rewards)
    api = ScoringAPI(
        partial(build.served_experts, rewards, build.plugins(config)),
        rewards["experts"],
        Limits(config.max_images, config.max_pixels, config.max_bytes, config.max_picture_pixels),
        config.max_batch,
        config.batch_timeout if config.max_batch > 1 else 0.0,
    )
    shown = f"[{config.host}]" if ":" in config.host else config.host
    print(
        f"serving {', '.join(rewards['experts'])} on http://{shown}:{config.port}"
        f" ({HEALTH_PATH} says ok when ready; Ctrl+C ends it)",
        flush=True,
    )
    try:
        serve(
            api,
            host=config.host,
            port=config.port,
            token=token,
            accelerator=config.accelerator,
            devices=config.devices,
            workers=config.workers,
            timeout=config.timeout,
            log_level=config.log_level,
        )
    except RuntimeError as error:
        raise UserError(str(error)) from error
    return 0


def check_free(host: str, port: int) -> None:
    """Raise UserError if something listens on the port already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"port={port}: cannot listen on {host} ({error.strerror}); choose another port") from error


COMMAND = cli.Command(
    name="serve_rewards",
    about="Serve reward experts to training runs, which use them by rewards.remote.url=http://host:port.",
    examples=(
        "rewards=shapes",
        "rewards=shapes port=8001 workers=2",
        "rewards=shapes host=0.0.0.0 token_file=token.txt",
    ),
    task=serve_rewards,
    config="serve_rewards",
    groups=("rewards",),
    keys=(
        "host port token_file           where to listen; a token is needed for all but 127.0.0.1",
        "workers devices accelerator    processes a device",
        "max_batch batch_timeout        requests that are scored together",
        "max_images max_pixels max_picture_pixels max_bytes timeout   what one request may ask",
    ),
)


def main() -> int:
    """Entry point."""
    return cli.run(COMMAND)


if __name__ == "__main__":
    sys.exit(main())
