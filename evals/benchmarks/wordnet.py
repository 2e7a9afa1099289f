"""Lemmas as the published CHAIR scripts make them: nltk's tokenizer, tagger and WordNet.

The rules are those of the Python 3 scripts that follow Rohrbach et al. (2018) and that papers on
LVLMs report with (OPERA's chair.py and its copies): the caption in lower case, `word_tokenize`,
`pos_tag` over the whole caption at once, and `WordNetLemmatizer` with the tag's first letter as the
part of speech (J, V, N, R; all others are read as nouns). So "tied back" gives a tie, "as" an "a".
"""

import functools
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cdkit.errors import CdkitError

INSTALL = (
    "run `python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet`, or name a "
    "folder that holds these three in the environment variable NLTK_DATA; the scorer 'simple' "
    "needs no data"
)
PARTS = {"J": "a", "V": "v", "N": "n", "R": "r"}
PROBE = "Her hair is tied back. Two geese, a man's feet and knives were left as she skis."
EXPECTED = "her hair be tie back . two geese , a man 's foot and knife be leave a she ski .".split()
"""Bugs included: "as" loses its s, and before a comma "geese" is tagged as an adjective."""


@dataclass(frozen=True, eq=False)
class NltkTools:
    """The three steps of nltk, loaded once."""

    tokens: Callable[[str], list[str]]
    tags: Callable[[list[str]], list[tuple[str, str]]]
    lemma: Callable[[str, str], str]

    def lemmas(self, caption: str) -> list[str]:
        """The lemma of each token, punctuation marks too."""
        tagged = self.tags(self.tokens(caption.lower()))
        return [self.lemma(token, PARTS.get(tag[:1], "n")) for token, tag in tagged]


def lemmas(caption: str) -> list[str]:
    """The lemmas of a caption; a CdkitError where nltk or its data is not there."""
    return tools().lemmas(caption)


@functools.cache
def tools() -> NltkTools:
    """nltk's tools, once they are seen to do with this nltk and its data what version 1 did."""
    try:
        import nltk
        from nltk.stem import WordNetLemmatizer
        from nltk.tag.perceptron import PerceptronTagger
    except ImportError:
        raise CdkitError(
            "the scorer 'wordnet' needs nltk: pip install 'cdkit[chair]', or take 'simple'"
        ) from None
    with _data("punkt_tab"):
        nltk.word_tokenize("a dog. a cat.")
    with _data("averaged_perceptron_tagger_eng"):
        tagger = PerceptronTagger()  # kept: nltk.pos_tag may load its weights at each call
    with _data("wordnet"):
        nltk.corpus.wordnet.ensure_loaded()
    lemma = functools.lru_cache(maxsize=2**16)(WordNetLemmatizer().lemmatize)
    made = NltkTools(nltk.word_tokenize, tagger.tag, lemma)
    if (got := made.lemmas(PROBE)) != EXPECTED:
        raise CdkitError(
            f"nltk {nltk.__version__} with its data reads {PROBE!r} as {' '.join(got)!r} and not "
            f"as the published scripts do: {INSTALL}"
        )
    return made


@contextmanager
def _data(package: str) -> Iterator[None]:
    try:
        yield
    except LookupError:
        raise CdkitError(f"nltk's data {package!r} is not there: {INSTALL}") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CdkitError(f"nltk's data {package!r} is unreadable ({error}): {INSTALL}") from None
