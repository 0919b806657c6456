"""Security: untrusted files run no code, unpack within limits, reach no shell, and neither read nor reveal secrets."""

from __future__ import annotations

import ast
import hashlib
import importlib
import io
import json
import pickle
import pkgutil
import re
import resource
import shutil
import struct
import sys
import time
import zipfile
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import apet
from apet.config.study_config import PretrainingConfig
from apet.core.hashing import bytes_digest
from apet.core.signals import SignalHandler
from apet.data import wheels
from apet.data.wheels import copy_member, fetch_wheel, open_member, open_wheel
from apet.errors import DataError, ModelError, StorageError, without_secrets
from apet.models.download import fetch_snapshot
from apet.models.ladder import parse_ladder_model
from apet.models.loading import load_plm
from apet.models.pretraining.pretrain import PretrainingState
from apet.models.registry import ModelSource
from apet.study.paths import ResultPaths
from apet.training.checkpoint import CellCheckpoint
from apet.training.job import record_failure
from saved import gguf, save_plm
from tiny import tiny_plm
from toy import SECRETS, Checkout, secrets_in
from toy_wheels import METADATA, pin_toy

SOURCE = Path(apet.__file__).parent


# Code execution


class Evil:
    """Object that creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def pwned(tmp_path: Path) -> Path:
    """Path of a file that exists if untrusted code has run."""
    return tmp_path / "pwned"


@pytest.fixture
def plm(tmp_path: Path) -> Path:
    return save_plm(tiny_plm("llama", fused=False).model, tmp_path / "plm")


def zipped(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def old(value: object) -> bytes:
    """Serialize in the format of PyTorch before 1.6."""
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


FORMS = {"zip": zipped, "old": old, "pickle": pickle.dumps}


def test_payload_creates_its_file_when_unpickled(pwned):
    pickle.loads(pickle.dumps(Evil(pwned)))
    assert pwned.exists()


@pytest.mark.parametrize("form", FORMS)
def test_pickle_in_weight_shards_does_not_run(plm, pwned, tmp_path, form):
    tensors = load_file(plm / "model.safetensors")
    (plm / "model.safetensors").unlink()
    (plm / "pytorch_model-00001-of-00002.bin").write_bytes(FORMS[form](tensors))
    (plm / "pytorch_model-00002-of-00002.bin").write_bytes(FORMS[form]({"x": torch.ones(2), "evil": Evil(pwned)}))
    with pytest.raises(ModelError, match=r"\.bin: not a file with only tensors"):
        fetch_snapshot(ModelSource("mine", {"folder": str(plm)}), tmp_path / "out", tmp_path)
    assert not pwned.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [[torch.ones(2)], torch.ones(2), {"state": {"x": torch.ones(2)}}, {"x": 3}, {1: "x"}])
def test_pickle_with_other_values_than_tensors_is_refused(plm, tmp_path, value):
    (plm / "model.safetensors").unlink()
    torch.save(value, plm / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: not a file with only tensors"):
        fetch_snapshot(ModelSource("mine", {"folder": str(plm)}), tmp_path / "out", tmp_path)


def test_weights_of_old_pytorch_are_converted_to_safetensors(plm, tmp_path):
    tensors = load_file(plm / "model.safetensors")
    (plm / "model.safetensors").unlink()
    (plm / "pytorch_model.bin").write_bytes(old(tensors))
    fetch_snapshot(ModelSource("mine", {"folder": str(plm)}), tmp_path / "out", tmp_path)
    converted = load_file(tmp_path / "out" / "model.safetensors")
    assert converted.keys() == tensors.keys() and all(torch.equal(converted[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("form", FORMS)
def test_pickle_named_safetensors_does_not_run(plm, pwned, form):
    (plm / "model.safetensors").write_bytes(FORMS[form]({"x": torch.ones(2000), "evil": Evil(pwned)}))
    with pytest.raises(ModelError, match="its weights cannot be read"):
        load_plm(plm, "mine")
    assert not pwned.exists()


@pytest.mark.parametrize("form", FORMS)
def test_pickle_in_place_of_a_cell_checkpoint_does_not_run(pwned, tmp_path, form):
    (tmp_path / "plan0.seed0.safetensors").write_bytes(FORMS[form](Evil(pwned)))
    assert CellCheckpoint(tmp_path, "identity", {}, SignalHandler()).load("plan0.seed0") is None
    assert not pwned.exists()


@pytest.mark.parametrize("form", FORMS)
def test_pickle_in_place_of_a_pretraining_checkpoint_does_not_run(pwned, tmp_path, form):
    state = FORMS[form]({"key": "key", "model": Evil(pwned), "optimizers": Evil(pwned), "losses": []})
    run = PretrainingState.initial(parse_ladder_model("bloom-16x1"), PretrainingConfig(vocab_size=512))
    for name, content in {"plain": state, "sealed": bytes_digest(state).encode() + state}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Exception, match=r"weights_only|Weights only") if name == "sealed" else nullcontext():
            run.load_checkpoint(tmp_path / name, "key")
    assert not pwned.exists() and run.losses == []


UNSAFE_CALLS = re.compile(
    r"(?<![.\w])(?:eval|exec|compile|__import__)\(|pickle\.|joblib|dill|read_pickle|np\.load\(|allow_pickle|marshal|shelve"
    r"|extractall|\.extract\(|unpack_archive|os\.system|popen|shell=|yaml\.(?:unsafe|full)_load|trust_remote_code=True"
)
"""Calls that execute their input, or unpack it without limits."""


@cache
def all_calls() -> list[tuple[str, str]]:
    """Source of all calls in the package: (function, call)."""
    trees = [ast.parse(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), ast.unparse(node)) for node in nodes]


def calls(name: str) -> list[str]:
    """Calls of a function in the package."""
    return [call for function, call in all_calls() if function.endswith(name)]


def test_package_has_no_unsafe_calls():
    source = "\n".join(path.read_text("utf-8") for path in SOURCE.rglob("*.py"))
    assert not UNSAFE_CALLS.search(source), UNSAFE_CALLS.search(source)
    assert len(calls("torch.load")) == 2 and all("weights_only=True" in call for call in calls("torch.load"))
    given = [call for call in calls(".from_pretrained") if "trust_remote_code=False" not in call]
    assert all("**options" in call for call in given) and '"trust_remote_code": False' in source
    assert all(re.match(r"import_module\(f?['\"]apet\.", call) for call in calls("import_module"))


CODE = "import pathlib; pathlib.Path({path!r}).touch()\nfrom transformers import PretrainedConfig as Mine\n"


@pytest.fixture
def coded(plm: Path, pwned: Path) -> Path:
    """PLM folder with code for configuration, model and tokenizer."""
    (plm / "mine.py").write_text(CODE.format(path=str(pwned)))
    kinds = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((plm / name).read_text())
        auto = {kind: ["mine.Mine", "mine.Mine"] if kind == "AutoTokenizer" else "mine.Mine" for kind in kinds}
        (plm / name).write_text(json.dumps(values | {"auto_map": auto}))
    return plm


@pytest.mark.parametrize("unknown", [False, True], ids=["known", "unknown"])
def test_code_in_a_plm_folder_does_not_run(coded, pwned, tmp_path, unknown, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # to the library's own question whether to run it
    if unknown:
        values = json.loads((coded / "tokenizer_config.json").read_text())
        (coded / "tokenizer_config.json").write_text(json.dumps(values | {"tokenizer_class": "Mine"}))
    calls = (
        lambda: load_plm(coded, "mine"),
        lambda: fetch_snapshot(ModelSource("mine", {"folder": str(coded)}), tmp_path / "out", tmp_path),
        lambda: load_plm(tmp_path / "out", "mine"),
    )
    for call in calls[:2] if unknown else calls:
        with pytest.raises(ModelError, match="its tokenizer cannot be read") if unknown else nullcontext():
            call()
    assert not pwned.exists() and not list((tmp_path / "out").glob("*.py"))
    assert not [name for name in sys.modules if name.endswith(".mine")]


def test_architecture_defined_by_repository_code_is_refused(coded, pwned, tmp_path):
    values = json.loads((coded / "config.json").read_text())
    (coded / "config.json").write_text(json.dumps(values | {"model_type": "mine"}))
    with pytest.raises(ModelError, match="unknown architecture 'mine'"):
        fetch_snapshot(ModelSource("mine", {"folder": str(coded)}), tmp_path / "out", tmp_path)
    assert not pwned.exists()


# Archives: the wheels have the pinned SHA-256, as if an attacker controlled their content


def pin(monkeypatch: pytest.MonkeyPatch, folder: Path, content: bytes) -> Path:
    """Write a file and make it the only wheel of the registry, with its SHA-256."""
    path = folder / "toy-1.0-py3-none-any.whl"
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(wheels, "known_wheels", lambda: {"toy": wheels.Wheel("toy", "1.0", path.name, sha256)})
    return path


def zip_of(*members: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:  # ZipInfo's date is fixed: parameters of a test must be the same in every worker
            member = zipfile.ZipInfo(name) if isinstance(name, str) else name
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def link(name: str, target: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, 0o120777 << 16
    return member


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_zip_bomb_is_refused_before_unpacking(monkeypatch, tmp_path):
    """A hundred names for one small stream, as in Fifield's bomb: 100 kB unpack to 10 GB."""
    content = bytearray(zip_of(("a", b"0" * 2**20 * 100)))
    directory = content.index(b"PK\1\2")
    entry, end = content[directory : content.index(b"PK\5\6")], bytearray(content[content.index(b"PK\5\6") :])
    content[directory:] = entry * 100
    for number in range(100):  # each entry has a name of its own
        content[directory + number * len(entry) + 46] = 33 + number
    end[8:12], end[12:16] = struct.pack("<HH", 100, 100), struct.pack("<I", 100 * len(entry))
    pin(monkeypatch, tmp_path, bytes(content + end))
    start = time.process_time()
    with pytest.raises(DataError, match=r"bytes unpacked, got 10,485,760,000"), open_wheel("toy", tmp_path):
        pytest.fail("was opened")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("size", [10, 2**31], ids=["smaller", "larger"])
def test_archive_member_with_a_wrong_size_is_refused(monkeypatch, tmp_path, size):
    content = bytearray(zip_of(("a", b"0123456789" * 1000)))
    for mark, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):  # in its own header and in the directory
        place = content.index(mark) + at
        content[place : place + 4] = struct.pack("<I", size)
    pin(monkeypatch, tmp_path, bytes(content))
    with open_wheel("toy", tmp_path) as archive:
        for read in (open_member, lambda archive, name: copy_member(archive, name, tmp_path / "copy")):
            if size > 10_000:  # no more comes out than went in
                read(archive, "a")
            else:
                with pytest.raises(DataError, match="a: corrupt archive"):
                    read(archive, "a")


def test_full_disk_while_unpacking_is_a_storage_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("member", b"0" * 100_000)
    full = pytest.raises(StorageError, match="/dev/full: no space left on device")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive, full:
        copy_member(archive, "member", Path("/dev/full"))


def test_archive_with_duplicate_members_is_refused(monkeypatch, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        pin(monkeypatch, tmp_path, zip_of(("a", b"one"), ("a", b"two")))
    with pytest.raises(DataError, match=r"duplicate member 'a'"), open_wheel("toy", tmp_path):
        pytest.fail("was opened")


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"PK\5\6" + b"\xff" * 18, zip_of(("a", b"x"))[:-10]],
    ids=["empty", "two bytes", "only a damaged end", "cut off"],
)
def test_wheel_that_is_no_zip_is_named_in_the_error(monkeypatch, tmp_path, content):
    path = pin(monkeypatch, tmp_path, content)
    with pytest.raises(DataError, match=rf"{path.name}: cannot be read as a zip"), open_wheel("toy", tmp_path):
        pytest.fail("was opened")


@pytest.mark.parametrize("change", [(8, 1), (10, 99)], ids=["encrypted", "an unknown packing"])
def test_archive_member_that_cannot_be_unpacked_is_named_in_the_error(monkeypatch, tmp_path, change):
    content, (at, value) = bytearray(zip_of(("a", b"x" * 100))), change
    content[content.index(b"PK\1\2") + at] = content[content.index(b"PK\3\4") + at - 2] = value
    pin(monkeypatch, tmp_path, bytes(content))
    with open_wheel("toy", tmp_path) as archive, pytest.raises(DataError, match="a: corrupt archive"):
        open_member(archive, "a")


def test_plm_in_a_wheel_is_written_only_to_its_folder(plm, monkeypatch, tmp_path):
    """Relative paths upwards, absolute paths and links in an archive are ignored."""
    secret = tmp_path / "secret"
    secret.write_text("not to be read")
    members = [(f"m/{path.name}", path.read_bytes()) for path in sorted(plm.iterdir())]
    evil = [
        ("m/../../climbed/config.json", b"{}"), ("../climbed.json", b"{}"), (str(tmp_path / "absolute.json"), b"{}"),
        ("m/..\\climbed.json", b"{}"), ("C:\\absolute.json", b"{}"), ("m//config.json", b"{}"), ("m/..", b"x"),
        (link("m/vocab.txt", str(secret)), str(secret).encode()), *METADATA.items(),
    ]  # fmt: skip
    (tmp_path / "wheels").mkdir()
    pin(monkeypatch, tmp_path / "wheels", zip_of(*members, *evil))
    before = listing(tmp_path)
    fetch_snapshot(ModelSource("mine", {"wheel": "toy", "folder": "m"}), tmp_path / "out", tmp_path / "wheels")
    created = set(listing(tmp_path)) - set(before)
    assert created == {"out", *(f"out/{name}" for name in listing(tmp_path / "out"))}
    assert (tmp_path / "out/config.json").read_bytes() == (plm / "config.json").read_bytes()
    assert not (tmp_path / "out/vocab.txt").is_symlink()
    assert (tmp_path / "out/vocab.txt").read_text() == str(secret)  # the link's own bytes


def test_a_gguf_that_speaks_of_more_than_it_holds_is_refused(monkeypatch, tmp_path):
    cases = (gguf(items=2**60), "cannot be read as GGUF"), (gguf(), "asks for"), (b"", "cannot be read as GGUF")
    for content, printed in cases:
        pin(monkeypatch, tmp_path, zip_of(("m/x.gguf", content)))
        with pytest.raises(ModelError, match=rf"x\.gguf: .*{printed}"):
            fetch_snapshot(ModelSource("mine", {"wheel": "toy", "gguf": "m/x.gguf"}), tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_plm_with_huge_shapes_is_refused_without_allocating_memory(plm):
    """Transformers would initialize the missing weights at random, gigabytes of them."""
    values = json.loads((plm / "config.json").read_text())
    for changes in ({"hidden_size": 10**6}, {"vocab_size": 10**7}, {"intermediate_size": 10**7}):
        (plm / "config.json").write_text(json.dumps(values | changes))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ModelError, match=r"config\.json asks for [\d,]+ parameters, and the weights hold at most"):
            load_plm(plm, "mine")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    (plm / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 10**8}))
    with pytest.raises(ModelError, match="num_hidden_layers is 100000000"):
        load_plm(plm, "mine")


# Secrets

NOWHERE = "127.0.0.1:9"
"""Address without a server."""


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def test_failed_download_does_not_reveal_index_credentials(secrets, monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path / "elsewhere", {})
    monkeypatch.setenv("PIP_INDEX_URL", f"https://the-user:the-password@{NOWHERE}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"https://the-user:the-password@{NOWHERE}/more")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "127.0.0.1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DataError, match=r"pip download toy==1.0` failed") as error:
        fetch_wheel("toy", tmp_path / "wheels")
    assert NOWHERE in str(error.value) or "No matching" in str(error.value)
    assert not secrets_in(str(error.value))


def test_failed_hub_request_does_not_reveal_the_token(secrets, monkeypatch, tmp_path, capsys):
    """Errors of the hub's client contain the endpoint."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://the-user:the-password@{NOWHERE}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError) as error:
        fetch_snapshot(ModelSource("mine", {"repo_id": "me/x", "revision": "main"}), tmp_path / "out", tmp_path)
    assert not secrets_in(str(error.value) + "".join(capsys.readouterr()))


def test_failure_record_contains_no_secrets(secrets, tmp_path):
    text = f"401 for https://the-user:the-password@host/x with {SECRETS['HF_TOKEN']}: {SECRETS['MY_PASSWORD']}"
    try:
        raise OSError(text)
    except OSError as error:
        record_failure(ResultPaths(tmp_path), "m/t/c", error)
    record = (tmp_path / "failed/m/t/c.json").read_text()
    assert not secrets_in(record) and "401 for https://***@host/x with ***: ***" in record


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("https://u:p@h/x", "https://***@h/x"),
        ("https://u:p@q@h/x", "https://***@h/x"),
        ("s3://key@bucket https://h/a@b", "s3://***@bucket https://h/a@b"),
        ("me@example.org", "me@example.org"),
    ],
)
def test_without_secrets_removes_credentials_from_urls(text, redacted):
    assert without_secrets(text) == redacted


# Paths


@pytest.mark.slow
@pytest.mark.parametrize("path", ["-rf.yaml", "{x}/params.yaml"])
def test_params_path_that_snakemake_misreads_is_refused(path, tmp_path):
    """tests/cli/test_bad_input.py covers paths that are quoted."""
    checkout = Checkout(tmp_path / "study", None)
    (checkout.folder / path).parent.mkdir(exist_ok=True)
    shutil.copy(checkout.folder / "params.yaml", checkout.folder / path)
    output = checkout.snakemake("-n", "--config", f"params={path}", check=False)
    assert f"{path}: expected a name without a leading -" in output and "Traceback" not in output


# Regular expressions with exponential run time


def expressions() -> dict[str, re.Pattern]:
    """Compiled regular expressions of the package, by name."""
    modules = [importlib.import_module(module.name) for module in pkgutil.walk_packages(apet.__path__, "apet.")]
    return {n: value for module in modules for n, value in vars(module).items() if isinstance(value, re.Pattern)}


WORST = ["a" * 30_000, "1" * 30_000, "-" * 30_000, " " * 30_000, "{" * 30_000, "{a" * 15_000, "1%" + " " * 30_000 + "x",
         "a." * 15_000, "../" * 10_000, "a-1x" * 7_000, "://" * 10_000, "://@" * 8_000, "\\d+" * 10_000, "0.0" * 10_000,
         "a the " * 5_000, '{ "format": ' + "1" * 30_000]  # fmt: skip


def test_regular_expressions_are_fast_on_adversarial_texts():
    source = "\n".join(path.read_text("utf-8") for path in SOURCE.rglob("*.py"))
    patterns, start = expressions(), time.process_time()
    assert len(patterns) >= 10
    for name, pattern in patterns.items():
        used = {"fullmatch", "match"} | set(re.findall(rf"\b{name}\.(search|findall|sub|split)\(", source))
        for use in sorted(used):
            for text in WORST:
                subject = text.encode() if isinstance(pattern.pattern, bytes) else text
                getattr(pattern, use)(*[subject[:0]] * (use == "sub"), subject)
    for text in WORST:
        without_secrets(text)
    assert time.process_time() - start < 5
