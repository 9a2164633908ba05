"""Demo: ``python -m src.demo run=RUN``: a web page where the base and the trained model plan and paint a prompt.

It listens on 127.0.0.1 and makes no requests to the internet (docs/DEMO.md).

    python -m src.demo run=bicot_lora
    python -m src.demo adapter=runs/bicot_lora/adapter port=7861
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from src.cli import command as cli
from src.config.errors import UserError
from src.config.schema import ROOT

HOST = "127.0.0.1"


def demo(config: Any) -> int:
    """Serve the page until it is interrupted; returns the exit code."""
    page = prepared(config)
    _, address, public = launch(page, config.port, config.share)
    print(f"demo: {address}" + (f" and {public} (public)" if public else "") + "; stop it with Ctrl-C", flush=True)
    try:
        page.block_thread()
    finally:
        page.close(verbose=False)
    return 0


def prepared(config: Any) -> Any:
    """The page, its model loaded.

    Raises:
        UserError: for a run, adapter or model that cannot be used, experts that cannot be built, or without Gradio.
    """
    if find_spec("gradio") is None:
        raise UserError('demo: Gradio is missing; pip install -e ".[demo]"')
    # Before Gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from src import build
    from src.demo.page import build_page
    from src.demo.studio import Studio
    from src.policies.load import quiet
    from src.policies.prompt_checks import room_for_prompts
    from src.trained import choose_model, load_policy

    chosen = choose_model(config)
    quiet()
    room = room_for_prompts(chosen["model"], chosen["sampling"]["max_plan_tokens"])
    rewards = build.build_rewards(config).to(build.device())
    trained = chosen["model"].get("adapter") is not None or chosen["weights"] is not None
    studio = Studio(load_policy(chosen), rewards, chosen["sampling"], trained, config.paint_every, room)
    about = [f"base `{shown(chosen['model'].get('path') or chosen['model']['repository'])}`"]
    if trained:
        about.append(f"trained `{shown(config.run or config.adapter or chosen['model']['adapter'])}`")
    return build_page(studio, about)


def shown(place: str) -> str:
    """A path as visitors see it: complete inside the checkout, else its last two parts."""
    path = Path(place).expanduser()
    if path.is_absolute() and path.is_relative_to(ROOT):
        return str(path.relative_to(ROOT))
    return str(Path(*path.parts[-2:])) if path.is_absolute() else place


def launch(page: Any, port: int, share: bool) -> tuple[Any, str, str | None]:
    """Start serving on 127.0.0.1 in the background; (app, address, public address if shared).

    Raises:
        UserError: if the port is taken.
    """
    import gradio as gr

    try:
        return page.launch(
            server_name=HOST,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            ssr_mode=False,
            pwa=False,
            theme=gr.themes.Base(),  # its fonts are served by the page itself
            footer_links=[],
        )
    except OSError as error:
        raise UserError(f"port={port}: already in use; choose another, as in port={port + 1}") from error


COMMAND = cli.Command(
    name="demo",
    about="A page on 127.0.0.1: type a prompt, see the plan, then the picture patch by patch, base and trained.",
    examples=("run=bicot_lora", "adapter=runs/bicot_lora/adapter port=7861", "model=janus_pro_7b model.path=DIR"),
    task=demo,
    config="demo",
    groups=("model", "rewards"),
    keys=(
        "run=NAME | run=DIR | adapter=DIR  what was trained; neither: the base model alone",
        "temperature guidance_scale        where the page's sliders start; max_plan_tokens top_k top_p",
        "port=7860 paint_every=TOKENS      share=true: a public address through Gradio's servers",
    ),
)


def main() -> int:
    """Entry point."""
    return cli.run(COMMAND)


if __name__ == "__main__":
    sys.exit(main())
