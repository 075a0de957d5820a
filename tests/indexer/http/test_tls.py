"""The certificate of the service, read again while it serves."""

import logging
import shutil
from pathlib import Path

import pytest

from indexer.config.settings import Settings
from indexer.errors import SettingError
from indexer.http.tls import Certificate

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(DATA / "tls-certificate.pem", cert)
    shutil.copy(DATA / "tls-key.pem", key)
    return cert, key


def test_without_files_there_is_no_tls(files: tuple[Path, Path]) -> None:
    assert Certificate.of(Settings()) is None
    assert Certificate.of(Settings(tls_cert=str(files[0]), tls_key=str(files[1]))) is not None


def test_a_key_of_another_certificate_is_named(files: tuple[Path, Path]) -> None:
    shutil.copy(DATA / "tls-key-2.pem", files[1])
    with pytest.raises(SettingError, match=r"--tls-key=.*is not the key of the certificate"):
        Certificate(*map(str, files))


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_file_is_named(files: tuple[Path, Path], missing: int) -> None:
    files[missing].unlink()
    with pytest.raises(SettingError, match=f"{('--tls-cert', '--tls-key')[missing]}=.*cannot be read"):
        Certificate(*map(str, files))


async def test_files_that_cannot_be_used_change_nothing_and_are_logged_once(files: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    certificate = Certificate(*map(str, files))
    kept = files[0].read_text()
    files[0].write_text("no certificate")
    for _ in range(2):
        await certificate.reload()
    files[0].write_text(kept)
    await certificate.reload()
    assert [record.message for record in caplog.records] == ["certificate not read again", "certificate read again"]
