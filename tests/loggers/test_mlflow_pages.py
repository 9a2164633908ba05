"""MLflow's own pages in a real browser: runs of this project's logger, selected and compared as a user does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from src.loggers.facts import DatasetFacts, RunFacts
from src.loggers.mlflow_logger import MLflowLogger
from src.runs.folder import RunFolder
from tests.mlflow_server import mlflow_server

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium: apt-get install chromium chromium-driver"),
    pytest.mark.skipif(find_spec("selenium") is None, reason='no selenium: pip install -e ".[browser]"'),
]
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --window-size=1500,1300"
)
# Name, beta and the reward validated at steps 0, 5 and 10.
RUNS = (
    ("weak", "0.1", (0.25, 0.3125, 0.375)),
    ("middle", "0.02", (0.25, 0.4375, 0.5)),
    ("free", "0", (0.25, 0.5, 0.875)),
)
WAIT = 90.0  # seconds until a page shows something; the first one is slow on a busy machine


def logged(root: Path, name: str, beta: str, rewards: tuple[float, ...]) -> str:
    config = {"run": {"name": "bicot", "root": str(root), "seed": 0}}
    folder = RunFolder(root / name)
    datasets = (DatasetFacts("prompts", "prompts", "0123456789ab", 12, "training"),)
    logger = MLflowLogger(RunFacts(folder, config, datasets=datasets), experiment="compared")
    logger.log_hyperparams({"beta": beta, "lr": "0.003"})
    for step, reward in zip((0, 5, 10), rewards, strict=True):
        logger.log_metrics({"validation/reward": reward}, step=step)
        sheet = folder.validation_samples(step)
        sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (25 * step, 80, 80)).save(sheet)
        logger.log_image("validation", [sheet], step=step)
    logger.finalize("success")
    assert logger.run_id is not None
    return logger.run_id


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A store's folder, and the three runs' ids by name."""
    root = tmp_path_factory.mktemp("runs")
    return root, {name: logged(root, name, beta, rewards) for name, beta, rewards in RUNS}


@pytest.fixture(scope="module")
def server(store: tuple[Path, dict[str, str]]) -> Iterator[str]:
    with mlflow_server(store[0]) as url:
        yield url


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A headless Chromium with a profile of its own."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.binary_location = CHROMIUM
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(WAIT)
    yield driver
    driver.quit()


def wait_for(browser: Any, what: Any) -> Any:
    """The first true value of `what(browser)`."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT, ignored_exceptions=[StaleElementReferenceException]).until(what)


def text(browser: Any) -> str:
    return browser.find_element("tag name", "body").text


def photographed(browser: Any, path: Path) -> Path:
    """A screenshot that shows something: a PNG of many colours."""
    browser.save_screenshot(str(path))
    with Image.open(path) as picture:
        assert picture.width >= 1200
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24) or ()) > 50
    return path


def row_of(browser: Any, name: str) -> str:
    """The index of a run's row in the list."""
    link = browser.find_element("link text", name)
    return link.find_element("xpath", "ancestor::*[@role='row']").get_attribute("row-index")


def cells(browser: Any, first: str) -> list[str]:
    """The comparison's table row that begins with `first`, cell by cell."""
    for row in browser.find_elements("css selector", "tr"):
        found = [cell.text for cell in row.find_elements("css selector", "th, td")]
        if found and found[0] == first:
            return found[1:]
    return []


def metric(browser: Any, name: str, runs: int) -> list[float]:
    """The comparison's values of a metric; this table is drawn without table elements, a cell a line."""
    lines = text(browser).splitlines()
    last = max((number for number, line in enumerate(lines) if line == name), default=len(lines))
    try:
        return [float(line) for line in lines[last + 1 : last + 1 + runs]]
    except ValueError:
        return []  # the plot's own mention of the name, before the table stands


def test_runs_are_selected_in_the_list_and_compared(
    store: tuple[Path, dict[str, str]], server: str, browser: Any, tmp_path: Path
) -> None:
    browser.get(f"{server}/#/experiments/1/runs")
    wait_for(browser, lambda page: all(name in text(page) for name, _, _ in RUNS))
    for name, _, _ in RUNS:
        box = f"[role=row][row-index='{row_of(browser, name)}'] input[type=checkbox][aria-label*='row selection']"
        browser.execute_script("arguments[0].click()", browser.find_element("css selector", box))
    buttons = wait_for(
        browser, lambda page: [b for b in page.find_elements("tag name", "button") if b.text == "Compare"]
    )
    buttons[0].click()
    wait_for(browser, lambda page: "compare-runs" in page.current_url and metric(page, "validation/reward", 3))
    wait_for(browser, lambda page: len(page.find_elements("css selector", "text.axis-title")) >= 2)
    photographed(browser, tmp_path / "comparison.png")
    assert "Comparing 3 Runs" in text(browser)
    names = cells(browser, "Run Name:")
    assert sorted(names) == sorted(name for name, _, _ in RUNS)
    wanted = {name: (beta, rewards[-1]) for name, beta, rewards in RUNS}
    assert cells(browser, "beta") == [wanted[name][0] for name in names]
    assert metric(browser, "validation/reward", 3) == [wanted[name][1] for name in names]


def test_sample_sheets_stand_side_by_side_at_a_step(server: str, browser: Any, tmp_path: Path) -> None:
    """The chart view shows each run's sheet of the same step, loaded from the artifacts."""
    browser.get(f"{server}/#/experiments/1/runs?compareRunsMode=CHART")
    drawn = "return [...document.images].filter(i => i.src.includes('validation%2Bstep%2B0') && i.naturalWidth).length"
    wait_for(browser, lambda page: page.execute_script(drawn) == len(RUNS))
    photographed(browser, tmp_path / "sheets.png")
    assert all(name in text(browser) for name, _, _ in RUNS)
