"""The published lineage of CHAIR's words: with data made here, and with the real data if found."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import nltk
import pytest
from nltk.corpus.reader.api import CorpusReader
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks import wordnet
from cdkit.evals.benchmarks.benchmark_files import read_source
from cdkit.evals.benchmarks.object_words import SCORERS, SYNONYMS, mentions, read_synonyms

TAGS = dict(
    zip(
        wordnet.PROBE.lower().replace(".", " .").replace(",", " ,").replace("'s", " 's").split(),
        "PRP$ NN VBZ VBN RB . CD JJ , DT NN POS NNS CC NNS VBD VBN IN PRP VBZ .".split(),
        strict=True,
    )
) | {"bears": "NNS", "bearing": "VBG", "better": "RBR", "seating": "NN", "buses": "CD"}
LEMMAS = {
    "noun": "hair man foot knife a bear bus",
    "verb": "be tie leave ski bear",
    "adv": "back well",
}
IRREGULAR = {
    "noun": "feet foot\nknives knife\n",
    "verb": "is be\nwere be\nleft leave\ntied tie\n",
    "adv": "better well\n",
}


def write_data(folder: Path) -> None:
    """nltk's three packages in small: a dictionary of tags, WordNet of ten words."""
    tagger = folder / "taggers" / "averaged_perceptron_tagger_eng"
    punkt = folder / "tokenizers" / "punkt_tab" / "english"
    words = folder / "corpora" / "wordnet"
    for place in (tagger, punkt, words):
        place.mkdir(parents=True)
    for name, value in {"weights": {}, "tagdict": TAGS, "classes": ["NN"]}.items():
        (tagger / f"{tagger.name}.{name}.json").write_text(json.dumps(value))
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (punkt / name).touch()
    for part in ("noun", "verb", "adj", "adv"):
        letter = {"adv": "r"}.get(part, part[0])
        lines = [f"{word} {letter} 1 0 1 0 00000000\n" for word in LEMMAS.get(part, "").split()]
        (words / f"index.{part}").write_text("".join(lines))
        (words / f"data.{part}").touch()
        (words / f"{part}.exc").write_text(IRREGULAR.get(part, ""))
    for name in ("lexnames", "index.sense", "cntlist.rev"):
        (words / name).touch()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where nltk looks for its data, and nowhere else; nothing stays loaded."""
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    other_languages = LazyCorpusLoader("omw-2.0", CorpusReader, r".*")  # never loaded
    fresh = LazyCorpusLoader("wordnet", WordNetCorpusReader, other_languages)
    monkeypatch.setattr(nltk.corpus, "wordnet", fresh)
    caches = (wordnet.tools, nltk.tokenize._get_punkt_tokenizer)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()
    for file in vars(fresh).get("_data_file_map", {}).values():
        file.close()  # nltk keeps it for good; left to the garbage collector, it fails a later test


def test_tags_decide_the_lemmas(place: Path) -> None:
    write_data(place)
    assert wordnet.lemmas("Tied, bears bearing. Seating buses better!") == (
        "tie , bear bear . seating bus well !".split()
    )


def test_missing_data_is_one_instruction(place: Path) -> None:
    todo = r": run `python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet`, or"
    with pytest.raises(CdkitError, match=r"nltk's data 'punkt_tab' is not there" + todo):
        wordnet.lemmas("a dog")
    write_data(place)
    words = place / "corpora" / "wordnet"
    words.rename(place / "elsewhere")
    with pytest.raises(CdkitError, match=r"nltk's data 'wordnet' is not there" + todo):
        wordnet.lemmas("a dog")
    (place / "elsewhere").rename(words)
    weights = next(place.rglob("*.weights.json"))
    weights.write_text("{")
    with pytest.raises(
        CdkitError, match=r"'averaged_perceptron_tagger_eng' is unreadable \(.*" + todo
    ):
        wordnet.lemmas("a dog")


def test_other_data_are_noticed(place: Path) -> None:
    write_data(place)
    tags = next(place.rglob("*.tagdict.json"))
    tags.write_text(json.dumps(TAGS | {"geese": "NNS", "tied": "JJ"}))
    with pytest.raises(CdkitError, match=r"nltk .* as .her hair be tied .* and not as the publish"):
        wordnet.lemmas("a dog")


def test_without_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    wordnet.tools.cache_clear()
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(CdkitError, match=r"needs nltk: pip install 'cdkit\[chair\]', or take 'sim"):
        wordnet.lemmas("a dog")


@pytest.mark.parametrize(
    ("lemmas", "published", "plain"),
    [
        ("a motor bike", [], ["motorcycle"]),  # the pair is merged, and no name is so written
        ("a motor cycle", ["motorcycle"], ["motorcycle"]),
        ("cheesecake", [], ["cake"]),
        ("iphone", [], ["cell phone"]),
        ("iPhone", ["cell phone"], []),
        ("wine glas", ["wine glass"], []),
        ("a dining table", ["dining table"], ["dining table"]),
        ("stove top oven", ["oven", "oven"], ["oven", "oven"]),  # three words are never one name
        ("toilet seat beside seat", ["toilet"], ["toilet"]),
        ("baby bison", ["person", "cow"], ["person", "cow"]),
    ],
)
def test_the_published_reading_of_the_synonyms(
    lemmas: str, published: list[str], plain: list[str]
) -> None:
    synonyms = read_synonyms(read_source(SYNONYMS))
    for name, expected in (("wordnet", published), ("simple", plain)):
        vocabulary = SCORERS[name].vocabulary(synonyms)
        assert mentions(lemmas.split(), vocabulary) == expected


def test_the_SYNONYMS() -> None:
    source = read_source(SYNONYMS)
    synonyms = read_synonyms(source)
    assert len(set(synonyms.node_of.values())) == 80 and len(synonyms.node_of) == 403
    assert "BSD-2-Clause" in source.text and "THIS SOFTWARE IS PROVIDED BY" in source.text


def real_data() -> bool:
    try:
        wordnet.tools()
    except CdkitError:
        return False
    return True


def test_with_the_real_data() -> None:
    """Sentences whose lemmas need the tagger and the whole of WordNet."""
    if not real_data():
        pytest.skip(f"needs nltk's data: {wordnet.INSTALL}")
    synonyms = read_synonyms(read_source(SYNONYMS))
    for caption, nodes in {
        "Her hair is tied back.": ["tie"],
        "She skis. Two buses are parked.": ["skis", "bus"],
        "A man wearing glasses holds knives and wine glasses.": ["person", "knife", "wine glass"],
        "The bear bears a burden": ["bear", "bear"],
        "Geese and sheep, oxen and calves": ["sheep", "cow", "cow"],  # to the tagger, JJ: no bird
        "A puppy, two kittens tied to a bench. Trains train.": [
            *("dog", "cat", "tie", "bench", "train", "train")
        ],
        "He seats himself on the seat of a toilet": ["toilet"],
        "Children riding motor bikes, cats' toys": ["person", "cat"],
    }.items():
        assert SCORERS["wordnet"].nodes(caption, synonyms) == nodes, caption
