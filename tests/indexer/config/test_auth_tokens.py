"""Files of bearer tokens."""

from pathlib import Path

import pytest

from indexer.config.auth_tokens import FILE_BYTES_MAX, TokenFile, read_tokens
from indexer.errors import SettingError

WORD = "hunter2-is-secret"


def test_one_a_line_with_comments_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# for the routers\n\n  {WORD}  # since May\nAb9._~+/-==\r\n#last")
    assert read_tokens(str(path), "--x") == [WORD, "Ab9._~+/-=="]


def test_each_of_several_is_good_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("one\ntwo\n")
    file = TokenFile(str(path), "--x")
    assert [file.admits(token) for token in (b"one", b"two", b"", b"on", b"onetwo", b"one\n", b"\xff")] == [True, True] + [False] * 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("", "holds 0 tokens"),
        ("# nothing\n", "holds 0 tokens"),
        (f"good\n{WORD} {WORD}", "line 2 is no token"),
        (f"{WORD}\u00e9", "line 1 is no token"),
        (f"{WORD}=a", "line 1 is no token"),
        ("\n".join(f"{WORD}{number}" for number in range(65)), "holds 65 tokens"),
        (WORD * (FILE_BYTES_MAX // len(WORD) + 1), "more than 65536 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_no_token_of_it(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingError) as raised:
        TokenFile(str(path), "--api-token-file")
    told = str(raised.value)
    assert said in told
    assert str(path) in told
    assert WORD not in told


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be read"):
        TokenFile(str(tmp_path), "--x")


def test_a_file_that_went_bad_leaves_the_old_tokens_good(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("one")
    file = TokenFile(str(path), "--x")
    path.write_text("")
    with pytest.raises(SettingError):
        file.read()
    assert file.admits(b"one")
    path.write_text("two")
    file.read()
    assert (file.admits(b"one"), file.admits(b"two")) == (False, True)
