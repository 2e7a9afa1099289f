"""Protocols from files: the packaged ones, and each fault of a file of one's own."""

import pickle
from pathlib import Path

import pytest

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.protocols.protocol import Protocol
from cdkit.evals.protocols.read import packaged, read_protocol

NAMES = (
    *("vcd_pope", "imccd_pope", "imccd_chair", "imccd_mme", "pai_pope", "pai_chair"),
    *("opera_chair", "sid_chair", "icd_pope", "llava_pope"),
)


def set_fields(protocol: Protocol) -> set[str]:
    """The dotted names of all that a protocol sets."""
    found = {*protocol.settings(), *(f"methods.{preset}" for preset in protocol.methods)}
    for name in ("models", "benchmarks"):
        for key, section in getattr(protocol, name).items():
            found |= {f"{name}.{key}.{k}" for k in section if k != "methods"}
            found |= {f"{name}.{key}.methods.{k}" for k in section.get("methods", {})}
    return found


def test_the_protocols_of_the_papers_are_there() -> None:
    assert set(NAMES) <= set(packaged())


@pytest.mark.parametrize("name", packaged())
def test_each_value_has_its_source(name: str) -> None:
    protocol = read_protocol(name)
    assert protocol.name == name and protocol.summary
    assert len(protocol.source.commit) == 40
    assert set(protocol.source.fields) == set_fields(protocol)
    assert pickle.loads(pickle.dumps(protocol)) == protocol  # runs hand it to other processes


@pytest.mark.parametrize("name", packaged())
def test_it_can_be_followed_by_each_model_that_it_names(name: str) -> None:
    protocol = read_protocol(name)
    known = {*cdkit.ADAPTERS}
    for model in protocol.models:
        assert model in known
        here = protocol.at(model=model)
        for preset in here.methods:
            cdkit.load(preset, **here.parameters(preset))


def test_the_authors_own_lists_hold_500_images_each() -> None:
    protocol = read_protocol("opera_chair")
    lists = [protocol.image_list, protocol.at(model="instructblip").image_list]
    names = [path.read_text().splitlines() for path in lists if path is not None]
    assert [len(set(each)) for each in names] == [500, 500]
    assert names[0] != names[1]
    assert all(
        each.startswith("COCO_val2014_") and len(each) == 29 for one in names for each in one
    )


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_bytes(text.encode())
    return path


def test_a_file_of_ones_own_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffmax_new_tokens = 8\n[models.llava]\nimage_list = "list.txt"\n')
    (tmp_path / "list.txt").write_text("1.jpg\n")
    protocol = read_protocol(path)
    assert (protocol.name, protocol.max_new_tokens) == ("mine", 8)
    assert protocol.at(model="llava").image_list == tmp_path / "list.txt"
    assert read_protocol(str(path)) == protocol


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mode = ", "is not TOML"),
        ("parsr = 'vcd'", "Did you mean 'parser'"),
        ("max_new_tokens = 'many'", "max_new_tokens must be of type int"),
        ("[models]\nllava = 3", "[models.llava] must be a table of keys"),
        ("[source]\nrepositry = 'a/b'", "Did you mean 'repository'"),
        ("image_list = 'no.txt'", "is no file"),
        ("[benchmarks.pope]\nimage_list = 'no.txt'", "is no file"),
        ("methods = 3", "methods must be a table of keys"),
    ],
)
def test_a_fault_of_a_file_names_it(tmp_path: Path, text: str, told: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(CdkitError) as caught:
        read_protocol(path)
    assert told in str(caught.value) and str(path) in str(caught.value)
    assert str(caught.value).count(str(path)) == 1 or "no.txt" in text


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CdkitError, match="Did you mean 'vcd_pope'"):
        read_protocol("vcd_pop")
    with pytest.raises(CdkitError, match=r"cannot read the protocol .*none\.toml"):
        read_protocol(tmp_path / "none.toml")
    with pytest.raises(CdkitError, match="cannot read the protocol"):
        read_protocol(tmp_path)
    with pytest.raises(CdkitError, match="a protocol is a name or a path"):
        read_protocol("")
    (tmp_path / "latin.toml").write_bytes(b"summary = '\xe4'")
    with pytest.raises(CdkitError, match="is not TOML"):
        read_protocol(tmp_path / "latin.toml")
