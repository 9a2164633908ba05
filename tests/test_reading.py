"""docs/READING.md: the files of one step are there, as long as it says, and no more than a newcomer can read."""

from __future__ import annotations

import re

from tests.conftest import ROOT

MOST = 4000  # lines of one step


def test_the_page_says_how_long_each_file_is() -> None:
    page = (ROOT / "docs" / "READING.md").read_text(encoding="utf-8")
    said = {file: int(lines) for file, lines in re.findall(r"^\| `([^`]+)` \| (\d+) \|", page, re.MULTILINE)}
    counted = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in said}
    assert said == {file: -(-lines // 10) * 10 for file, lines in counted.items()}
    assert f"together they are {sum(said.values()):,}" in page
    assert sum(counted.values()) <= MOST
    assert {"src/training/collect.py", "src/training/update.py", "src/rollout/decode.py"} <= said.keys()
