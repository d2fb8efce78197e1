"""The ladder of "Is it learning?": each rung gives what the page shows."""

import doctest
import re

from conftest import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"


def test_what_is_tried_on_the_page_comes_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    tried = doctest.testfile(str(PAGE), module_relative=False)

    assert tried.attempted > 35
    assert tried.failed == 0


def test_every_rung_is_in_the_table_in_its_order():
    text = PAGE.read_text()

    rungs = re.findall(r"^## (\d) (.+)$", text, flags=re.MULTILINE)
    listed = re.findall(r"^\| \[(.+)\]\(#(\d)-", text, flags=re.MULTILINE)

    assert [int(number) for number, _ in rungs] == list(range(1, 9))
    assert [name.lower() for name, _ in listed] == [name.lower() for _, name in rungs]
    assert [number for _, number in listed] == [number for number, _ in rungs]
