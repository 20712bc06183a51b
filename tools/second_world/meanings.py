"""What things, words and captions mean, as vectors that the base is taught.

A sentence encoder, the teacher, reads English. What a thing means is the sum of what it makes of the thing's names, of
its keywords in Unicode CLDR and, by half, of the names of its kind. A keyword is drawn half-way to the things that it
is said of, a name to its thing and a caption to what its scene shows. All are centred by the mean everyday thing and
turned to 192 dimensions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scenery import TRAINING_STYLES, compose
from things import Thing, load_things, stand_ins
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from words import CLDR, WORDNET, fetched, keywords, never_taught, read_annotations, read_wordnet, spoken, teacher_folder

from safe_clip.store.chunks import Chunk, in_chunks, joined
from safe_clip.store.fingerprints import short_digest

DIMENSIONS = 192
KIND = 0.5  # weight of the names of a thing's kind in its meaning
DRAWN = 0.5  # weight of the mean thing in a keyword's meaning
CAPTIONS = 20_000  # of scenes, that are taught as English
LONGEST = 48  # tokens that the teacher reads of a text
CHUNK, BATCH = 2048, 128
Read = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Meanings:
    """What is taught. Vectors are of length 1.

    Attributes:
        things: of each of `load_things()`, things x dimensions.
        texts: N words, phrases and sentences of English.
        targets: of each of them, N x dimensions in half precision.
        pools: which of them are of each kind: `lemma`, `common`, `gloss`, `keyword`, `name` and `caption`.
        kept: words that are never taught.
        kept_targets: what the teacher makes of them, words x dimensions.
        keywords: the keywords that no caption of a scene uses, each with the places in `things` that it is said of.
    """

    things: Tensor
    texts: list[str]
    targets: Tensor
    pools: dict[str, Tensor]
    kept: list[str]
    kept_targets: Tensor
    keywords: dict[str, list[int]]

    def save(self, file: Path) -> None:
        tensors = {"things": self.things, "targets": self.targets, "kept_targets": self.kept_targets}
        tensors |= {f"pool/{name}": places for name, places in self.pools.items()}
        tensors |= {f"keyword/{word}": torch.tensor(places) for word, places in self.keywords.items()}
        part = file.with_suffix(".part")
        texts = {"texts": "\n".join(self.texts), "kept": "\n".join(self.kept)}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=texts)
        part.rename(file)

    @classmethod
    def load(cls, file: Path) -> "Meanings":
        tensors = load_file(file)
        with safe_open(file, "pt") as opened:
            texts = opened.metadata()

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}

        return cls(
            tensors["things"],
            texts["texts"].split("\n"),
            tensors["targets"],
            under("pool/"),
            texts["kept"].split("\n"),
            tensors["kept_targets"],
            {word: places.tolist() for word, places in under("keyword/").items()},
        )


def has_amx() -> bool:
    """Whether this CPU multiplies matrices in bfloat16 by itself, which is about twice as fast."""
    return "amx_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False


class Teacher:
    """Reads texts by all-MiniLM-L6-v2: the mean over its last hidden states, of length 1.

    Args:
        folder: of the encoder.
        kept: a folder for what it has read, so that an interruption costs one chunk.
    """

    def __init__(self, folder: Path, kept: Path | None = None):
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.kept = kept

    @torch.inference_mode()
    def _batch(self, texts: list[str]) -> Tensor:
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16, enabled=has_amx()):
            states = self.model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"][..., None]
        return normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=1)

    def __call__(self, texts: Sequence[str], desc: str = "Reading English") -> Tensor:
        """N x 384 of N texts, in their order."""
        order = sorted(range(len(texts)), key=lambda place: (len(texts[place]), place))  # so that little is padding

        def make(batches: list[range]) -> list[Chunk]:
            return (({"read": self._batch([texts[order[i]] for i in batch])}, []) for batch in batches)  # type: ignore

        folder = self.kept and self.kept / short_digest("\n".join(texts))
        chunks = in_chunks(folder, len(texts), make, desc, CHUNK, BATCH)
        read = torch.empty(len(texts), self.model.config.hidden_size)
        read[torch.tensor(order)] = joined(chunks)[0]["read"]
        return read


def thing_vectors(read: Read, words: Mapping[Thing, Sequence[str]]) -> Tensor:
    """What things mean to the teacher: things x its dimensions, of length 1."""
    texts = list(dict.fromkeys(w for thing in words for w in (*thing.bare_names, *words[thing], *thing.kinds)))
    vector = dict(zip(texts, read(texts), strict=True))

    def mean(texts: Sequence[str]) -> Tensor:
        return torch.stack([vector[text] for text in texts]).mean(dim=0)

    sums = [mean(t.bare_names) + mean(words[t]) + KIND * mean(t.kinds) for t in words]
    return normalize(torch.stack(sums), dim=1)


def said_of(words: Mapping[Thing, Sequence[str]]) -> dict[str, list[int]]:
    """The places of the things that each keyword is said of."""
    places: dict[str, list[int]] = {}
    for place, each in enumerate(words.values()):
        for word in each:
            places.setdefault(word, []).append(place)
    return places


def axes(texts: Tensor, things: Tensor, dimensions: int) -> Tensor:
    """The principal axes of texts and things, which count alike: dimensions of the teacher x `dimensions`."""
    spread = sum(each.T @ each / len(each) for each in (normalize(texts, dim=1), normalize(things, dim=1)))
    return torch.linalg.eigh(spread).eigenvectors[:, -dimensions:].flip(1)


def caption_scenes(count: int) -> tuple[list[str], list[list[int]]]:
    """Captions of scenes, with the places of what they show."""
    places = {thing: place for place, thing in enumerate(load_things())}
    captions, shown = [], []
    for index in tqdm(range(count), "Captions"):
        made = compose(f"second/english/{index}", TRAINING_STYLES, stand_ins())
        scene = made.unsafe if index % 2 else made.safe
        captions.append(scene.caption)
        shown.append([places[thing] for thing in scene.things])
    return captions, shown


def make(packages: Path, kept: Path, file: Path, captions: int = CAPTIONS, most: int | None = None) -> Meanings:
    """Reads all that is taught and writes it.

    Args:
        packages: where what is fetched lies.
        kept: a folder for what the teacher has read.
        file: the safetensors file to write.
        captions: of scenes.
        most: of each kind of texts, for a quick look.
    """
    annotations = read_annotations(fetched(CLDR, packages))
    words = keywords(annotations, load_things())
    of_things, lexicon = said_of(words), read_wordnet(fetched(WORDNET, packages))
    every_keyword = sorted({word for each in annotations.values() for word in each})
    names = sorted(spoken())
    kept_words = never_taught(lexicon, {*every_keyword, *names})
    out = set(kept_words)
    made, shown = caption_scenes(captions)
    pools = {
        "lemma": [word for word in lexicon.lemmas if word not in out][:most],
        "common": [word for word in lexicon.common if word not in out][:most],
        "gloss": lexicon.glosses[:most],
        "keyword": every_keyword[:most],
        "name": names,
        "caption": made,
    }
    texts = list(dict.fromkeys(text for pool in pools.values() for text in pool))
    place = {text: number for number, text in enumerate(texts)}

    read = Teacher(teacher_folder(packages), kept)
    things, vectors, kept_vectors = thing_vectors(read, words), read(texts), read(kept_words)
    towards = {place[word]: DRAWN * things[of].mean(dim=0) for word, of in of_things.items() if word in place}
    named = {name: [number] for number, thing in enumerate(words) for name in thing.bare_names}
    named |= dict(zip(made, shown, strict=True))
    towards |= {place[text]: normalize(things[of].sum(dim=0), dim=0) for text, of in named.items()}
    rows = torch.tensor(list(towards))
    vectors[rows] = normalize(vectors[rows] + torch.stack(list(towards.values())), dim=1)

    centre = things[[t.category is None for t in load_things()]].mean(dim=0)
    turn = axes(vectors - centre, things - centre, DIMENSIONS)
    turned = [normalize((each - centre) @ turn, dim=1) for each in (things, vectors, kept_vectors)]
    used = spoken()
    meanings = Meanings(
        turned[0],
        texts,
        turned[1].half(),
        {name: torch.tensor([place[text] for text in pool]) for name, pool in pools.items()},
        kept_words,
        turned[2],
        {word: of for word, of in of_things.items() if word not in used},
    )
    meanings.save(file)
    return meanings
