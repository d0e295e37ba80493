"""docs/doors.md lists every page of docs/doors, and each is short, begins with code, and names the test that runs it."""

import re

import pytest

from wavcse.tests.helpers.door_pages import DOORS, MOST_LINES, ROOT

PAGES = sorted(path.name for path in DOORS.glob("*.md"))


def test_the_index_lists_every_page():
    text = (ROOT / "docs/doors.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| .*\]\(doors/([a-z_]+\.md)\)", text, re.MULTILINE)
    assert sorted(listed) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_short_and_begins_with_code_that_a_test_runs(name):
    text = (DOORS / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert re.match(r"# [^\n]+\n\n```(python|bash)\n", text)
    call = re.compile(rf'run_first_block\("(doors/)?{re.escape(name)}"')
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path.name != "test_pages.py"]
    assert any(call.search(path.read_text(encoding="utf-8")) for path in tests)


def test_every_feature_beside_other_packages_names_tests_that_are_there():
    lines = (ROOT / "docs/peers.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    assert len(rows) > 20
    for feature, _, tests, *peers in rows:
        links = re.findall(r"\]\(\.\./(tests/[\w/]+\.py)\)", tests)
        assert links, feature
        assert all((ROOT / link).is_file() for link in links), feature
        assert len(peers) == 6, feature
        assert set(peers) <= {"Y", "P", "N", "-"}, feature
