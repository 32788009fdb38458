from __future__ import annotations

from tests import families_page


def test_page_of_families_has_the_table_of_the_tests() -> None:
    assert families_page.main(["--check"]) == 0, "run python -m tests.families_page"
