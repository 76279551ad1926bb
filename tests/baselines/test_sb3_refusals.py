"""What is not a plain PPO of an MLP is refused by name; what is hostile is refused, and nothing in it is executed."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from sb3_archives import ACCOUNT, BARS, SCHEMA, Noise, Payload, box, rewritten, trained, trained_normalized, with_data
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from baselines.sb3.importing import Options, imported, publish_imported, read_source
from baselines.sb3.normalization import EXTRACT, read_normalization
from baselines.sb3.pickled import Record, read_pickle
from core.errors import DataError, ModelError

FLAT = box(BARS[0] * BARS[1] + ACCOUNT[0])
Change = Callable[[dict[str, bytes]], dict[str, bytes]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archives")


@pytest.fixture(scope="module")
def archive(folder: Path) -> Path:
    trained(FLAT, spaces.Discrete(5)).save(folder / "agent.zip")
    return folder / "agent.zip"


@pytest.fixture(scope="module")
def normalizer() -> VecNormalize:
    return trained_normalized(FLAT, spaces.Discrete(5))[1]


@pytest.fixture(scope="module")
def vecnormalize(folder: Path, normalizer: VecNormalize) -> Path:
    normalizer.save(str(folder / "vecnormalize.pkl"))
    return folder / "vecnormalize.pkl"


def publish(archive: Path, store: Path, normalization: Path | None = None, **options: Any) -> None:
    source = read_source(archive, normalization)
    policy, schema = imported(source, SCHEMA, Options(**options), quantity_max=1000.0)
    publish_imported(policy, schema, store=store, name="ppo", version="v1", sha256=source.sha256)


def assert_refused(
    match: str, archive: Path, tmp_path: Path, normalization: Path | None = None, **options: Any
) -> None:
    """A named error, nothing published, and no file that a payload would have made."""
    with pytest.raises(ModelError, match=match) as caught:
        publish(archive, tmp_path / "models", normalization, **options)
    assert caught.value.code == "archive_refused"
    assert "nothing was published" in str(caught.value)
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "proof").exists()


def test_the_unaltered_archive_is_published(archive: Path, vecnormalize: Path, tmp_path: Path) -> None:
    publish(archive, tmp_path / "models", vecnormalize)
    assert (tmp_path / "models" / "ppo" / "v1" / "model.onnx").exists()


# Hostile archives


def test_a_payload_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()


def test_a_cloudpickle_in_the_data_is_never_loaded(archive: Path, tmp_path: Path) -> None:
    payload = base64.b64encode(cloudpickle.dumps(Payload(tmp_path / "proof"))).decode()

    def poison(data: dict[str, Any]) -> None:
        for value in data.values():
            if isinstance(value, dict) and ":serialized:" in value:
                value[":serialized:"] = payload

    poisoned = with_data(archive, tmp_path / "agent.zip", poison)
    publish(poisoned, tmp_path / "models")  # what is read of it is whole
    assert not (tmp_path / "proof").exists()
    with pytest.raises(Exception):  # noqa: B017 - whatever: what it runs before is the point
        PPO.load(poisoned)
    assert (tmp_path / "proof").exists()


def test_a_payload_among_the_weights(archive: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"action_net.weight": Payload(tmp_path / "proof")}, buffer)
    poison: Change = lambda members: members | {"policy.pth": buffer.getvalue()}  # noqa: E731
    assert_refused("something else than weights", rewritten(archive, tmp_path / "agent.zip", poison), tmp_path)


def test_a_plain_pickle_instead_of_the_weights(archive: Path, tmp_path: Path) -> None:
    poison: Change = lambda members: members | {"policy.pth": pickle.dumps(Payload(tmp_path / "proof"))}  # noqa: E731
    assert_refused("not in torch's format", rewritten(archive, tmp_path / "agent.zip", poison), tmp_path)


@pytest.mark.parametrize("member", ["data", "policy.pth"])
def test_a_zip_bomb_is_not_unpacked(member: str, archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(tmp_path / "agent.zip", "w", zipfile.ZIP_DEFLATED) as out:
        for name in source.namelist():
            out.writestr(name, bytes(200_000_000) if name == member else source.read(name))
    assert (tmp_path / "agent.zip").stat().st_size < 1_000_000
    assert_refused(f"{member} is larger than", tmp_path / "agent.zip", tmp_path)


def test_a_zip_bomb_inside_the_weights(archive: Path, tmp_path: Path) -> None:
    def deflate(members: dict[str, bytes]) -> dict[str, bytes]:
        buffer = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(members["policy.pth"])) as records,
            zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out,
        ):
            for name in records.namelist():
                out.writestr(name, records.read(name) + bytes(1_000_000))
        return members | {"policy.pth": buffer.getvalue()}

    assert_refused("compressed or overlaps", rewritten(archive, tmp_path / "agent.zip", deflate), tmp_path)


CALL = b"X\x01\x00\x00\x00a\x85R."  # of the name before it, with one argument


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cbuiltins\nbytearray\n" + CALL,
        b"\x80\x02ctorch.storage\nUntypedStorage\n" + CALL,
        b"\x80\x02c_codecs\nencode\n" + CALL,
        b"\x80\x02ccollections\nCounter\n" + CALL,
        b"\x80\x02}(" + b"K\x01N" * 10_000 + b"u.",
        b"\x80\x02",
    ],
)
def test_what_weights_only_would_let_a_pickle_call_or_fill_is_not_begun(
    program: bytes, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gigabytes, a quadratic codec, keys that collide: all of them within torch's own limits."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read it"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as records:
        records.writestr("archive/data.pkl", program)
    change: Change = lambda members: members | {"policy.pth": buffer.getvalue()}  # noqa: E731
    assert_refused("policy.pth", rewritten(archive, tmp_path / "agent.zip", change), tmp_path)


def test_torch_is_given_what_was_checked_and_nothing_beside_it(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two readers of zip files may see two archives in one file."""
    hidden = b"what only another reader would find"
    given: list[bytes] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: given.append(file.getvalue()) or load(file, **options))
    change: Change = lambda members: members | {"policy.pth": hidden + members["policy.pth"]}  # noqa: E731
    read_source(rewritten(archive, tmp_path / "agent.zip", change), None)
    assert len(given) == 1 and hidden not in given[0]


def test_a_huge_view_of_a_few_weights(archive: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"action_net.weight": torch.zeros(1).expand(10**6, 10**6)}, buffer)
    change: Change = lambda members: members | {"policy.pth": buffer.getvalue()}  # noqa: E731
    assert_refused("more than .* parameters", rewritten(archive, tmp_path / "agent.zip", change), tmp_path)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil"])
def test_members_that_point_outside(name: str, archive: Path, tmp_path: Path) -> None:
    altered = rewritten(archive, tmp_path / "agent.zip", lambda members: members | {name: b"x"})
    assert_refused("points outside", altered, tmp_path)


def test_a_member_that_is_there_twice(archive: Path, tmp_path: Path) -> None:
    altered = rewritten(archive, tmp_path / "agent.zip", lambda members: members)
    with zipfile.ZipFile(altered, "a") as out, pytest.warns(UserWarning, match="Duplicate"):
        out.writestr("data", b"{}")
    assert_refused("a member twice", altered, tmp_path)


def test_a_directory_of_thousands_of_members(archive: Path, tmp_path: Path) -> None:
    altered = rewritten(archive, tmp_path / "agent.zip", lambda m: m | {f"member{n}": b"" for n in range(3000)})
    assert_refused("directory of", altered, tmp_path)


def test_a_size_that_the_directory_understates(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    at = content.find(b"PK\1\2")
    while content[at + 46 : at + 50] != b"data":
        at = content.find(b"PK\1\2", at + 1)
    content[at + 24 : at + 28] = struct.pack("<L", 100)
    (tmp_path / "agent.zip").write_bytes(content)
    assert_refused("agent.zip", tmp_path / "agent.zip", tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 1000, -1, -30, -3000])
def test_a_truncated_archive(kept: int, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "agent.zip").write_bytes(archive.read_bytes()[:kept])
    assert_refused("no whole zip archive|something behind it", tmp_path / "agent.zip", tmp_path)


def test_an_archive_of_more_than_the_limit(tmp_path: Path) -> None:
    with (tmp_path / "agent.zip").open("wb") as file:
        file.truncate(401_000_000)  # sparse
    assert_refused("larger than 400 MB", tmp_path / "agent.zip", tmp_path)


@given(st.data())
def test_no_damage_of_bytes_is_more_than_a_refusal(archive: Path, data: st.DataObject) -> None:
    content = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    altered = archive.with_name("damaged.zip")
    altered.write_bytes(content)
    try:
        imported(read_source(altered, None), SCHEMA, Options(), quantity_max=1000.0)
    except ModelError as error:
        assert error.code == "archive_refused"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"[]", "no JSON object"),
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff", "no JSON"),
        (b"{}", "nothing"),
    ],
)
def test_data_that_is_no_description(content: bytes, match: str, archive: Path, tmp_path: Path) -> None:
    altered = rewritten(archive, tmp_path / "agent.zip", lambda members: members | {"data": content})
    assert_refused(match, altered, tmp_path)


def test_an_absent_member(archive: Path, tmp_path: Path) -> None:
    altered = rewritten(archive, tmp_path / "agent.zip", lambda m: {n: c for n, c in m.items() if n != "policy.pth"})
    assert_refused("no member 'policy.pth'", altered, tmp_path)


# Weights and spaces that do not belong together


def with_weights(archive: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    def changed(members: dict[str, bytes]) -> dict[str, bytes]:
        weights = dict(torch.load(io.BytesIO(members["policy.pth"]), weights_only=True))
        change(weights)
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        return members | {"policy.pth": buffer.getvalue()}

    return rewritten(archive, out, changed)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("action_net.bias", torch.full((5,), torch.nan), "not finite"),
        ("action_net.bias", torch.zeros(4), "no linear layer"),
        ("action_net.bias", torch.zeros(5, dtype=torch.int64), "something else than weights .*LongStorage"),
        ("action_net.bias", torch.zeros(5).to_sparse(), "something else than weights .*_rebuild_sparse_tensor"),
        ("action_net.weight", torch.zeros(5, 63), "takes 63 numbers, 64 were expected"),
        ("value_net.weight", torch.zeros(64), "no linear layer"),
        ("mlp_extractor.policy_net.0.weight", torch.zeros(64, 14), "takes 14 numbers, 15 were expected"),
        ("mlp_extractor.policy_net.1.weight", torch.zeros(64), "not made of linear layers"),
        ("features_extractor.cnn.0.weight", torch.zeros(4, 1, 3, 3), "no MlpPolicy.*features_extractor.cnn"),
        ("mlp_extractor.shared_net.0.weight", torch.zeros(4, 4), "no MlpPolicy.*shared_net"),
    ],
)
def test_weights_of_another_network(name: str, value: torch.Tensor, match: str, archive: Path, tmp_path: Path) -> None:
    altered = with_weights(archive, tmp_path / "agent.zip", lambda weights: weights.__setitem__(name, value))
    assert_refused(match, altered, tmp_path)


def test_weights_that_are_finite_but_answer_with_what_is_not(archive: Path, tmp_path: Path) -> None:
    """Infinite in torch and in onnxruntime alike, whose difference is no number."""

    def overflowing(weights: dict[str, torch.Tensor]) -> None:
        weights["value_net.weight"] = torch.full_like(weights["value_net.weight"], 3e38)
        weights["mlp_extractor.value_net.2.bias"] = torch.full((64,), 9.0)

    altered = with_weights(archive, tmp_path / "agent.zip", overflowing)
    with pytest.raises(ModelError, match="nothing was published"):
        publish(altered, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_more_actions_than_outputs(archive: Path, tmp_path: Path) -> None:
    altered = with_data(archive, tmp_path / "agent.zip", lambda data: data["action_space"].__setitem__("n", "3"))
    assert_refused("action_net answers 5 numbers, .* need 3", altered, tmp_path)


@pytest.mark.parametrize(
    ("key", "field", "value", "match"),
    [
        ("observation_space", "_shape", "[1" + "1" * 3000, "gives a shape as"),
        ("observation_space", "_shape", "__import__('os')", "gives a shape as"),
        ("observation_space", "_shape", {"a": {}}, "gives a shape as"),
        ("observation_space", "_shape", "[2, 999999999]", "numbers"),
        ("observation_space", "_shape", "[0]", "0 numbers"),
        ("observation_space", ":type:", "<class 'gymnasium.spaces.text.Text'>", "observations are a Text"),
        ("observation_space", ":type:", None, "what a space is"),
        ("action_space", ":type:", "<class 'gymnasium.spaces.multi_binary.MultiBinary'>", "actions are a MultiBinary"),
        ("action_space", "n", "999999999", "one choice"),
        ("action_space", "n", "0", "one choice"),
        ("action_space", "n", "-5", "gives a shape as"),
        ("policy_class", "__module__", "my_company.policies", "'my_company.policies'.*--trust"),
        ("policy_class", "__module__", ["x"], "--trust"),
    ],
)
def test_descriptions_that_make_no_sense(
    key: str, field: str, value: Any, match: str, archive: Path, tmp_path: Path
) -> None:
    altered = with_data(archive, tmp_path / "agent.zip", lambda data: data[key].__setitem__(field, value))
    assert_refused(match, altered, tmp_path, generic=field == "_shape")


@given(st.text(max_size=60))
def test_no_text_of_a_space_is_more_than_a_refusal(text: str) -> None:
    from baselines.sb3.description import describe

    type_ = "<class 'gymnasium.spaces.{}'>"
    data = {
        "policy_class": {"__module__": "stable_baselines3.common.policies"},
        **dict.fromkeys(("clip_range", "n_epochs", "gae_lambda"), 1),
        "observation_space": {":type:": type_.format("dict.Dict"), "spaces": text},
        "action_space": {":type:": type_.format("box.Box"), "low": text, "high": text},
    }
    with pytest.raises(ModelError):
        describe(data)


# Other agents


def test_other_algorithms_are_refused_by_name(tmp_path: Path) -> None:
    model = A2C("MlpPolicy", trained(FLAT, spaces.Discrete(5)).get_env(), n_steps=8).learn(16)
    model.save(tmp_path / "agent.zip")
    assert_refused("no PPO archive", tmp_path / "agent.zip", tmp_path)


def test_a_dqn(tmp_path: Path) -> None:
    env = trained(FLAT, spaces.Discrete(5)).get_env()
    DQN("MlpPolicy", env, buffer_size=100, learning_starts=10).learn(20).save(tmp_path / "agent.zip")
    assert_refused("no PPO archive", tmp_path / "agent.zip", tmp_path)


def test_a_recurrent_ppo(tmp_path: Path) -> None:
    env = trained(FLAT, spaces.Discrete(5)).get_env()
    RecurrentPPO("MlpLstmPolicy", env, n_steps=16, batch_size=16, n_epochs=1).learn(16).save(tmp_path / "agent.zip")
    assert_refused("RecurrentPPO carries a state", tmp_path / "agent.zip", tmp_path)


def test_a_policy_of_images(tmp_path: Path) -> None:
    image = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    made = DummyVecEnv([lambda: Noise(image, spaces.Discrete(5))])
    PPO("CnnPolicy", made, n_steps=8, batch_size=8, n_epochs=1).learn(8).save(tmp_path / "agent.zip")
    assert_refused("its observation is a Box \\(.*36.*expected is a Box", tmp_path / "agent.zip", tmp_path)


class Own(ActorCriticPolicy):
    """A policy of the user's own class."""


def test_a_policy_of_a_class_of_its_own(tmp_path: Path) -> None:
    env = trained(FLAT, spaces.Discrete(5)).get_env()
    PPO(Own, env, n_steps=8, batch_size=8, n_epochs=1).learn(8).save(tmp_path / "agent.zip")
    assert_refused("is a class of .*--trust", tmp_path / "agent.zip", tmp_path)


def test_state_dependent_exploration(tmp_path: Path) -> None:
    model = trained(FLAT, spaces.Box(-1.0, 1.0, (1,), np.float32), use_sde=True)
    model.save(tmp_path / "agent.zip")
    assert_refused("use_sde", tmp_path / "agent.zip", tmp_path)


@pytest.mark.parametrize(
    ("space", "options", "match"),
    [
        (spaces.Discrete(4), {}, "its 4 choices have no names"),
        (spaces.Discrete(3), {"actions": ("buy", "sell")}, "2 names, the agent has 3"),
        (spaces.Discrete(3), {"actions": ("up", "hold", "down")}, "'up' is none of short, flat, long, buy"),
        (spaces.Discrete(3), {"quantities": (1.0, 2.0)}, "choose no quantity"),
        (spaces.Discrete(3), {"quantities": (1e9,)}, "within 1 and 1000"),
        (spaces.Discrete(3), {"quantities": (float("nan"),)}, "within 1 and 1000"),
        (spaces.Discrete(3), {"activation": "swish"}, "activation is swish"),
        (spaces.MultiDiscrete([5, 3]), {"quantities": (1.0, 2.0)}, "2 of them, the agent chooses among 3"),
        (spaces.MultiDiscrete([5, 3, 2]), {}, "one choice, or one and a bin"),
        (spaces.Box(0.0, 1.0, (1,), np.float32), {}, r"target position in \[-1, 1\] must come first"),
        (spaces.Box(-1.0, 1.0, (3,), np.float32), {}, r"target position in \[-1, 1\] must come first"),
        (spaces.Box(-1.0, 1.0, (1,), np.float32), {"dead_zone": 1.0}, "--dead-zone 1"),
        (spaces.Box(-1.0, 1.0, (1,), np.float32), {"actions": ("buy",)}, "these are a Box"),
        (spaces.Box(-1.0, 1.0, (2,), np.float32), {"quantities": (5.0,)}, "share of the largest"),
    ],
)
def test_actions_without_a_meaning(space: spaces.Space, options: dict[str, Any], match: str, tmp_path: Path) -> None:
    trained(FLAT, space).save(tmp_path / "agent.zip")
    assert_refused(match, tmp_path / "agent.zip", tmp_path, **options)


def test_an_observation_of_other_shapes_is_told_beside_what_was_expected(tmp_path: Path) -> None:
    trained(box(5, 2), spaces.Discrete(3)).save(tmp_path / "agent.zip")
    match = r"is a Box \(5, 2\); expected is a Box \(4, 3\) of bars, a Box \(15,\) .*account \(3,\); with --generic"
    assert_refused(match, tmp_path / "agent.zip", tmp_path)


def test_a_dict_of_other_parts_cannot_be_generic(tmp_path: Path) -> None:
    trained(spaces.Dict({"a": box(3), "b": box(2, 2)}), spaces.Discrete(3)).save(tmp_path / "agent.zip")
    assert_refused("a Dict of a .3,. and b .2, 2.", tmp_path / "agent.zip", tmp_path)
    assert_refused("--generic takes a Box", tmp_path / "agent.zip", tmp_path, generic=True)


# VecNormalize


def test_a_payload_instead_of_the_statistics(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "proof")))
    assert_refused("posix.system.*\n.*python -c", archive, tmp_path, tmp_path / "v.pkl")


def test_a_payload_within_the_statistics(archive: Path, tmp_path: Path) -> None:
    _, poisoned = trained_normalized(FLAT, spaces.Discrete(5))
    poisoned.reset_infos = [Payload(tmp_path / "proof")]
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(poisoned))
    assert_refused("posix.system", archive, tmp_path, tmp_path / "v.pkl")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_gives_the_same_statistics_or_a_refusal(
    protocol: int, normalizer: VecNormalize, tmp_path: Path
) -> None:
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(normalizer, protocol))
    if protocol == 2:  # bytes are calls of a codec there
        with pytest.raises(ModelError, match=r"_codecs\.encode"):
            read_normalization(tmp_path / "v.pkl")
        return
    found = read_normalization(tmp_path / "v.pkl")
    assert found is not None
    np.testing.assert_array_equal(found.mean[""], normalizer.obs_rms.mean)
    np.testing.assert_array_equal(found.var[""], normalizer.obs_rms.var)
    assert (found.clip, found.epsilon) == (normalizer.clip_obs, normalizer.epsilon)


def test_the_recipe_makes_an_npz_that_says_the_same(vecnormalize: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(vecnormalize.parent)
    exec(EXTRACT)
    from_pickle, from_npz = read_normalization(vecnormalize), read_normalization(vecnormalize.with_suffix(".npz"))
    assert from_pickle is not None and from_npz is not None
    np.testing.assert_array_equal(from_pickle.mean[""], from_npz.mean[""])
    assert (from_pickle.clip, from_pickle.epsilon) == (from_npz.clip, from_npz.epsilon)


def test_an_npz_with_objects_is_not_unpickled(archive: Path, tmp_path: Path) -> None:
    poison = np.array([Payload(tmp_path / "proof")], dtype=object)
    np.savez(tmp_path / "v.npz", clip=10.0, epsilon=1e-8, **{"mean.": poison, "var.": poison})
    assert_refused("has no clip", archive, tmp_path, tmp_path / "v.npz")


def test_an_npz_that_unpacks_to_gigabytes(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "v.npz", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("mean..npy", bytes(70_000_000))
    assert_refused("unpacks to more", archive, tmp_path, tmp_path / "v.npz")


def test_an_npz_that_claims_terabytes(archive: Path, tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(tmp_path / "v.npz", "w") as out:
        out.writestr("mean..npy", header.getvalue())
    assert_refused("has no clip", archive, tmp_path, tmp_path / "v.npz")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"mean.": np.full(15, np.nan)}, "not finite"),
        ({"mean.": np.zeros(14), "var.": np.ones(14)}, "is of .14,. numbers, the observation has .15,."),
        ({"var.": np.full(15, -1.0)}, "not positive"),
        ({"epsilon": np.array(0.0)}, "not positive"),
        ({"clip": np.array(-1.0)}, "not positive"),
        ({"clip": np.array(np.nan)}, "not positive"),
        ({"clip": np.zeros(3)}, "has no clip"),
        ({"mean.bars": np.zeros(3), "var.bars": np.ones(3)}, "the observation has"),
    ],
)
def test_statistics_of_something_else(changes: dict[str, Any], match: str, archive: Path, tmp_path: Path) -> None:
    whole = {"clip": 10.0, "epsilon": 1e-8, "mean.": np.zeros(15), "var.": np.ones(15)}
    np.savez(tmp_path / "v.npz", **(whole | changes))
    assert_refused(match, archive, tmp_path, tmp_path / "v.npz")


def test_observations_that_were_not_normalized(tmp_path: Path) -> None:
    _, env = trained_normalized(FLAT, spaces.Discrete(5))
    env.norm_obs = False
    env.save(str(tmp_path / "v.pkl"))
    assert read_normalization(tmp_path / "v.pkl") is None


@given(st.binary(max_size=200))
def test_no_bytes_are_more_than_a_refusal(content: bytes) -> None:
    with contextlib.suppress(DataError):
        read_pickle(content)


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"c__builtin__\neval\n(Vprint(1)\ntR.",
        b"(icollections\nOrderedDict\n.",
        b"\x80\x02\x82\x01.",
        b"Ppersistent\n.",
        b"r\xff\xff\xff\xff.",
        b"\x80\x04" + b"(" * 100_000 + b"t" * 100_000 + b".",
        b"\x80\x04}" + b")\x85" * 1000 + b"Ns.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04}" + b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x1fNs.",  # 2^61 - 1, whose hash is 0, as a key
        b"\x80\x04Np2305843009213693951\n.",  # and as the number of a memo
    ],
)
def test_pickles_that_are_programs(content: bytes) -> None:
    if content.startswith(b"\x80\x04("):
        assert isinstance(read_pickle(content), tuple)  # deep, but data
    else:
        with pytest.raises(DataError):
            read_pickle(content)


def test_what_a_pickle_would_make_is_a_record() -> None:
    record = read_pickle(pickle.dumps(np.arange(3.0), protocol=4))
    assert isinstance(record, Record)
    assert record.name.endswith("._reconstruct")
    with pytest.raises(DataError, match=r"json\.decoder"):
        read_pickle(pickle.dumps(json.JSONDecoder))
