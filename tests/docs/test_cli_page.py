"""The page of commands is what the command line says of itself."""

from cli_page import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert page() == PAGE.read_text(), "python tests/docs/cli_page.py writes it anew"
