"""Secrets in files of their own and from systemd: what is read, refused, and shown nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuckoo_api.machinery import (
    API_VERSION,
    BackendConfig,
    MachineryBackend,
    MachineryPlugin,
    Option,
)
from cuckoo_api.model.errors import ConfigError
from cuckoo_api.settings import Settings, init_cwd, load_settings
from cuckoo_api.settings.init import with_value

SECRET = "the-one-that-nobody-sees"
KEYS = [("cuckoo", "api_token"), ("virustotal", "key"), ("webhooks", "secret")]


def backend(config: BackendConfig) -> MachineryBackend:
    raise AssertionError("settings make no backend")


PLUGIN = MachineryPlugin(
    name="qemu",
    api_version=API_VERSION,
    backend=backend,
    options=(Option("pwd", secret=True), Option("host")),
    machine_options=(Option("pin", secret=True),),
)
QEMU = "[qemu]\nmachines = one\n{}\n[one]\nip = 10.0.0.2\n"


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    init_cwd(tmp_path, [PLUGIN])
    return tmp_path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A secret as an editor leaves it, for its owner alone."""
    path = tmp_path / "a secret"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return path


def configure(cwd: Path, section: str, key: str, value: str) -> None:
    path = cwd / "conf" / "cuckoo.conf"
    path.write_text(with_value(path.read_text(), section, key, value))


def load(cwd: Path) -> Settings:
    return load_settings(cwd, [PLUGIN])


def fault(cwd: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(cwd)
    assert SECRET not in repr(caught.value.faults)
    return caught.value.faults[0]


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_it_may_stand_in_a_file_of_its_own(cwd: Path, file: Path, section: str, key: str) -> None:
    configure(cwd, section, key, f"file:{file}")
    settings = load(cwd)
    assert getattr(getattr(settings, section), key) == SECRET
    assert settings.warnings == ()


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_it_may_be_a_credential_that_systemd_brings(
    cwd: Path, file: Path, section: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(file.parent))
    file.rename(file.with_name("api-token_1.txt"))
    configure(cwd, section, key, "credential:api-token_1.txt")
    assert getattr(getattr(load(cwd), section), key) == SECRET


def test_the_passwords_of_hypervisors_and_machines_may_as_well(cwd: Path, file: Path) -> None:
    conf = QEMU.format(f"pwd = file:{file}") + f"pin = file:{file}\n"
    (cwd / "conf" / "qemu.conf").write_text(conf)
    qemu = load(cwd).machinery["qemu"]
    assert (qemu.options["pwd"], qemu.machines[0].options["pin"]) == (SECRET, SECRET)


def test_it_is_shown_nowhere(cwd: Path, file: Path) -> None:
    for section, key in KEYS:
        configure(cwd, section, key, f"file:{file}")
    (cwd / "conf" / "qemu.conf").write_text(QEMU.format(f"pwd = file:{file}"))
    settings = load(cwd)
    assert SECRET not in repr(settings)
    assert settings.machinery["qemu"].options["pwd"] == SECRET


def test_a_value_that_says_no_place_is_the_secret_and_no_secret_is_a_place(
    cwd: Path, file: Path
) -> None:
    configure(cwd, "cuckoo", "api_token", "profile:/x")
    (cwd / "conf" / "qemu.conf").write_text(QEMU.format(f"host = file:{file}"))
    settings = load(cwd)
    assert settings.cuckoo.api_token == "profile:/x"
    assert settings.machinery["qemu"].options["host"] == f"file:{file}"


def test_a_new_one_counts_when_the_settings_are_read_anew(cwd: Path, file: Path) -> None:
    configure(cwd, "cuckoo", "api_token", f"file:{file}")
    load(cwd)
    file.write_text("another")
    assert load(cwd).cuckoo.api_token == "another"


def test_one_that_everybody_may_read_brings_a_warning(cwd: Path, file: Path) -> None:
    file.chmod(0o644)
    configure(cwd, "cuckoo", "api_token", f"file:{file}")
    [warning] = load(cwd).warnings
    assert warning.endswith(
        f"api_token: {file} is open to everybody on this host; chmod o-rwx {file}"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (f"{SECRET}\n{SECRET}".encode(), "holds more than one line of text"),
        (f"{SECRET}\x00".encode(), "holds more than one line of text"),
        (SECRET.encode() * 4096, "holds more than one line of text"),
        (b"\xff\xfe" + SECRET.encode("utf-16-le"), "is not UTF-8 text"),
    ],
)
def test_a_file_with_no_secret_in_it_stops_the_start(
    cwd: Path, file: Path, content: bytes, said: str
) -> None:
    file.write_bytes(content)
    configure(cwd, "cuckoo", "api_token", f"file:{file}")
    assert f"[cuckoo] api_token: {file} {said}" in fault(cwd)


def test_a_file_that_is_not_there_stops_the_start(cwd: Path) -> None:
    configure(cwd, "cuckoo", "api_token", "file:/nowhere/at all")
    assert "/nowhere/at all cannot be read: No such file or directory" in fault(cwd)


@pytest.mark.parametrize("value", ["file:", "file:key", "credential:", "credential:../x"])
def test_a_place_that_is_none_stops_the_start(
    cwd: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/")
    configure(cwd, "virustotal", "key", value)
    assert f"[virustotal] key: {value!r}; allowed: " in fault(cwd)


def test_who_only_looks_for_faults_may_leave_credentials_to_the_service(cwd: Path) -> None:
    configure(cwd, "cuckoo", "api_token", "credential:api-token")
    settings = load_settings(cwd, [], machinery=[], credentials=False)
    assert settings.asks_for_token


def test_a_credential_outside_of_the_service_is_said_to_be_there_alone(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    configure(cwd, "cuckoo", "api_token", "credential:api-token")
    assert "LoadCredential=api-token:PATH in the unit" in fault(cwd)
