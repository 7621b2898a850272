"""What commands say of a policy's fields is what the page on the owner policy says."""

from terafleet.cli.policy_words import FIELDS
from tests.tidy.test_error_docs import rows
from tests.tidy.test_policy_docs import PAGE


def test_the_page_and_the_commands_mean_the_same() -> None:
    told = {row[0]: row[2].strip("`") for row in rows(PAGE, "Fields") if row[0] != "terms"}
    said = {
        path: words.means.strip("`")
        for path, words in FIELDS.items()
        if not path.startswith("terms.")
    }
    assert said == told


def test_every_field_of_the_terms_has_words() -> None:
    assert all(words.means for path, words in FIELDS.items() if path.startswith("terms."))
