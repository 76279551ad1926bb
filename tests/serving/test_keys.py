import json
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.files import write_atomically
from core.signing import KEYS
from serving.keys import KEYS_FILE, PEPPER_FILE, KeyRing, create, read, revoke
from serving.scopes import Principal, Scope, Unknown

DESK = (Scope.DECIDE, Scope.ROLLOUT_READ)


def who(state_dir: Path, key: str) -> Principal | Unknown:
    return KeyRing(state_dir).who(key.encode())


def until(ring: KeyRing, key: str, wanted: object) -> None:
    """Waits for a change of the file to be noticed."""
    deadline = time.monotonic() + 60
    while ring.who(key.encode()) != wanted:
        assert time.monotonic() < deadline, f"still {ring.who(key.encode())}"
        time.sleep(0.02)


def test_a_key_opens_what_its_scopes_say(tmp_path: Path) -> None:
    key, text = create(tmp_path, "desk", DESK)
    found = who(tmp_path, text)
    assert found == Principal(f"key:{key.id}", frozenset(DESK))
    assert found.may(Scope.DECIDE)
    assert found.may(None)
    assert not found.may(Scope.ROLLOUT_ABORT)
    assert not found.may(Scope.ADMIN)


def test_admin_may_everything(tmp_path: Path) -> None:
    found = who(tmp_path, create(tmp_path, "ops", (Scope.ADMIN,))[1])
    assert isinstance(found, Principal)
    assert all(found.may(scope) for scope in Scope)


def test_what_is_kept_cannot_be_used_as_a_key(tmp_path: Path) -> None:
    key, text = create(tmp_path, "desk", DESK)
    kept = (tmp_path / KEYS_FILE).read_text()
    secret = text.split("_", 2)[2]
    assert secret not in kept
    assert len(secret) >= 43
    assert text.startswith(f"hrm_{key.id}_")
    assert who(tmp_path, f"hrm_{key.id}_{key.mac}") is Unknown.INVALID
    assert text not in repr(key)


@pytest.mark.parametrize("file", [KEYS_FILE, f"{KEYS}/{PEPPER_FILE}"])
def test_only_the_owner_reads_what_keys_are_checked_with(tmp_path: Path, file: str) -> None:
    create(tmp_path, "desk", DESK)
    assert stat.S_IMODE((tmp_path / file).stat().st_mode) == 0o600


def test_a_right_secret_under_another_id_is_wrong(tmp_path: Path) -> None:
    (_, one), (_, two) = create(tmp_path, "one", DESK), create(tmp_path, "two", (Scope.ADMIN,))
    swapped = two[:17] + one[17:]
    assert who(tmp_path, swapped) is Unknown.INVALID
    assert who(tmp_path, "hrm_000000000000" + one[16:]) is Unknown.INVALID


@given(st.data())
def test_one_changed_character_is_another_key(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("state")
    text = create(folder, "desk", DESK)[1].encode()
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[place]))
    assert KeyRing(folder).who(text[:place] + bytes([other]) + text[place + 1 :]) is Unknown.INVALID


@given(st.binary(max_size=100))
def test_what_is_no_key_opens_nothing(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    assert KeyRing(tmp_path_factory.mktemp("state")).who(b"hrm_" + junk) is Unknown.INVALID


def test_an_expired_key_is_told_so_and_a_forged_one_is_not(tmp_path: Path) -> None:
    _, text = create(tmp_path, "desk", DESK, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert who(tmp_path, text) is Unknown.EXPIRED
    assert who(tmp_path, text + "x") is Unknown.INVALID
    _, text = create(tmp_path, "desk", DESK, expires_at=datetime.now(UTC) + timedelta(days=1))
    assert isinstance(who(tmp_path, text), Principal)


def test_a_running_service_takes_new_keys_and_drops_revoked_ones(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    assert ring.who(b"hrm_") is Unknown.INVALID
    key, text = create(tmp_path, "desk", DESK)
    until(ring, text, Principal(f"key:{key.id}", frozenset(DESK)))
    assert revoke(tmp_path, key.id) == key
    until(ring, text, Unknown.INVALID)
    with pytest.raises(ConfigError, match="hrm keys list") as error:
        revoke(tmp_path, key.id)
    assert error.value.code == "no_such_key"


@pytest.mark.parametrize("damage", ["{", '{"keys": [{"id": "x"}]}', '{"format": 2}'])
def test_a_damaged_file_opens_for_nobody(tmp_path: Path, damage: str) -> None:
    _, text = create(tmp_path, "desk", DESK)
    ring = KeyRing(tmp_path)
    assert isinstance(ring.who(text.encode()), Principal)
    write_atomically(tmp_path / KEYS_FILE, damage.encode(), mode=0o600)
    until(ring, text, Unknown.INVALID)
    with pytest.raises(ConfigError, match=KEYS_FILE):
        create(tmp_path, "another", DESK)  # nor is it written over


def test_without_its_pepper_a_file_of_keys_opens_for_nobody(tmp_path: Path) -> None:
    _, text = create(tmp_path, "desk", DESK)
    pepper = tmp_path / KEYS / PEPPER_FILE
    kept = pepper.read_bytes()
    for change in (pepper.unlink, lambda: pepper.write_text("00" * 32), lambda: pepper.write_text("zz")):
        change()
        assert who(tmp_path, text) is Unknown.INVALID
    pepper.write_bytes(kept)
    pepper.chmod(0o600)
    assert isinstance(who(tmp_path, text), Principal)
    pepper.chmod(0o644)
    assert who(tmp_path, text) is Unknown.INVALID


def test_changes_at_the_same_time_do_not_undo_each_other(tmp_path: Path) -> None:
    first = create(tmp_path, "first", DESK)[0]
    with ThreadPoolExecutor(4) as pool:
        gone = pool.submit(revoke, tmp_path, first.id)
        made = list(pool.map(lambda i: create(tmp_path, f"key {i}", DESK)[0].id, range(8)))
        gone.result()
    assert sorted(key.id for key in read(tmp_path)) == sorted(made)


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "a;b"])
def test_a_name_is_for_people_and_logs(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        create(tmp_path, name, DESK)
    with pytest.raises(ConfigError, match="scopes"):
        create(tmp_path, "desk", ())
    assert not (tmp_path / KEYS_FILE).exists()


def test_the_file_of_keys_holds_what_the_documentation_says(tmp_path: Path) -> None:
    create(tmp_path, "desk", DESK)
    document = json.loads((tmp_path / KEYS_FILE).read_text())
    assert document["keys"][0].keys() == {"id", "name", "mac", "scopes", "created_at", "expires_at"}
