"""From the command line to a validated config: Hydra composes, wrong input gives one message and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from src.cli.compose import Command, compose, spelled_out

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_OUTPUT_CLOSED = 141  # how a shell tells of a program that SIGPIPE ended
FLAGS = """\
  --cfg job        print the resolved config and stop
  -m, --multirun   sweep: key=a,b runs every combination
  -h, --help       this page"""


def run(command: Command, arguments: Sequence[str] | None = None) -> int:
    """Run an entry point and return its exit code."""
    from src.config.errors import UserError
    from src.config.masking import mask_tracebacks, masked_text

    mask_tracebacks()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "-h" in given or "--help" in given:
        print(help_page(command))
        return 0
    try:
        overrides, flags = split_flags(given)
        overrides = spelled_out(overrides, command.own_words)
        if "--cfg" in flags:
            return _show(compose(overrides, command.config))
        if "-m" in flags:
            return _sweep(command, overrides)
        code = command.task(compose(overrides, command.config))
        sys.stdout.flush()  # here, where a reader that is gone is understood
        return code
    except UserError as error:
        print(masked_text(f"error: {error}"), file=sys.stderr)
        return EXIT_WRONG_INPUT
    except (RuntimeError, MemoryError) as error:
        if (told := _out_of_memory(command, error)) is None:
            raise
        print(masked_text(f"error: {told}"), file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        from src.cli.closed_output import send_nowhere

        for stream in (sys.stdout, sys.stderr):
            send_nowhere(stream)  # else Python's own flush at its end would complain
        return EXIT_OUTPUT_CLOSED
    except KeyboardInterrupt:
        print("interrupted" + (" before anything was trained" if command.name == "train" else ""), file=sys.stderr)
        return EXIT_INTERRUPTED


# What lowers the memory a command takes, where it has such a setting.
LOWER = (
    *("batch_size", "best_of", "rollout.max_rows", "rollout.prompts_per_step", "rollout.group_size"),
    *("rollout.max_plan_tokens", "evaluation.batch_size", "max_plan_tokens", "max_images", "max_batch", "workers"),
    *("images", "scaling", "group_size"),
)


def _out_of_memory(command: Command, error: BaseException) -> str | None:
    """What to say of an error that is want of memory, None of any other."""
    if "torch" not in sys.modules and not isinstance(error, MemoryError):
        return None
    from src.config.commands import settings_of
    from src.training.out_of_memory import first_line, is_out_of_memory

    if not is_out_of_memory(error):
        return None
    known = settings_of(command.config)
    keys = ", ".join(key for key in LOWER if key in known and known[key].number is not None)
    advice = f"lower {keys}, or take a smaller model" if keys else "take a smaller model or a larger machine"
    return f"out of memory: {advice}; docs/MEMORY.md has the sizes ({first_line(error)})"


def split_flags(given: Sequence[str]) -> tuple[list[str], set[str]]:
    """Overrides and flags apart; raises UserError for a flag that does not exist."""
    from src.config.errors import UserError

    overrides, flags, rest = [], set(), list(given)
    while rest:
        word = rest.pop(0)
        if word in ("-m", "--multirun"):
            flags.add("-m")
        elif word == "--cfg" or word.startswith("--cfg="):
            what = word.partition("=")[2] or (rest.pop(0) if rest else "")
            if what != "job":
                raise UserError(f"--cfg {what}: expected --cfg job")
            flags.add("--cfg")
        elif word.startswith("-"):
            raise UserError(f"{word}: no such flag; settings are written key=value, --help shows them")
        else:
            overrides.append(word)
    return overrides, flags


def help_page(command: Command) -> str:
    """What ``--help`` prints: a screen, from the config files' names alone."""
    from src.cli.errors import group_options

    lines = [f"usage: python -m src.{command.name} [key=value ...]", "", command.about, ""]
    if command.groups:
        lines.append("options of each group (group=option):")
        lines += [f"  {group:11}{' | '.join(group_options(group))}" for group in command.groups]
        lines.append("")
    if command.keys:
        lines += ["often set:", *(f"  {key}" for key in command.keys), ""]
    lines += ["flags:", FLAGS if command.sweeps else "\n".join(FLAGS.splitlines()[::2]), "", "examples:"]
    lines += [f"  python -m src.{command.name} {example}".rstrip() for example in command.examples]
    return "\n".join(lines)


def _show(config: Any) -> int:
    from omegaconf import OmegaConf

    from src.runs.config import config_text

    shown: Any = OmegaConf.to_container(config, resolve=True)
    print(config_text(shown), end="")
    return 0


def _sweep(command: Command, overrides: Sequence[str]) -> int:
    """Hydra's own multirun: sweeper and launcher are Hydra's, each job is validated as a single run is."""
    from src.cli.sweep import sweep
    from src.config.errors import UserError

    if not command.sweeps:
        raise UserError(f"-m: src.{command.name} does not sweep")
    return sweep(command, overrides)
