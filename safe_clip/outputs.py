"""A folder that is written into: what in it is this package's, how files get there, and who may write."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from . import __version__
from .errors import UserError
from .store.fingerprints import stored_weights_digest
from .store.known_files import (
    CARD,
    CHECKPOINT_MARKS,
    CHECKPOINTS,
    FIGURES,
    FIRST_MOVED,
    HARMLESS,
    LOADED,
    LOCK,
    MANIFEST,
    MARKS,
    REPLACED,
    WRITTEN,
    WRITTEN_TO,
    file_facts,
    fits,
    has_mark,
    is_checkpoint,
    is_cut_off,
)
from .store.writing import STAGE, make_public_modes, remove, whole_file, write_whole

logger = logging.getLogger(__name__)

PATIENCE = 6.0  # seconds; what a process that was killed had started ends within 5
FEW = 5  # names that a message lists


class OutputFolder:
    """A folder that is written into.

    Args:
        path: where; it need not be there yet.
        option: the flag that named it, for messages.
    """

    def __init__(self, path: str | Path, option: str = "--output_dir"):
        self.path, self.option = Path(path), option

    # ---- Before anything else ----

    def check(
        self, overwrite: bool = False, reads: Sequence[str | Path | None] = (), files: Sequence[str] | None = None
    ) -> None:
        """Raises `UserError` for what could not, or must not, be written.

        Args:
            overwrite: what others wrote may be moved away.
            reads: folders or files that are read from, if they are on this machine, and so never written to.
            files: the only files that are written; by default a model's, which claim the folder as a whole.
        """
        check_writable(self.path, self.option)
        here = self.path.resolve()
        for each in reads:
            if each is None or not os.path.exists(Path(each)):
                continue
            read = Path(each).resolve()
            if read.is_dir() and (here == read or here in read.parents or read in here.parents):
                how = "is" if here == read else "holds" if here in read.parents else "lies in"
                raise UserError(
                    f"{self.option} {self.path} {how} {each}, which is read and never written to; name a folder "
                    "outside of it."
                )
        aside = self.path / REPLACED
        if os.path.lexists(aside) and (aside.is_symlink() or not aside.is_dir()):
            raise UserError(
                f"{aside} is no folder, and is the place for what would be in the way: rename it, or name another "
                f"{self.option}."
            )
        if not overwrite and (found := self.foreign(files)):
            listed = ", ".join(found[:FEW]) + (f" and {len(found) - FEW} more" if len(found) > FEW else "")
            raise UserError(
                f"{self.option} {self.path} holds what this package did not write: {listed}. Name another folder, or "
                f"add --overwrite_output_dir: what is in the way is then moved into {self.path / REPLACED}."
            )

    def foreign(self, files: Sequence[str] | None = None) -> list[str]:
        """Names of what is there and not ours, as far as it matters; see `check`."""
        if not os.path.exists(self.path):
            return []
        if files is not None:
            return [name for name in files if os.path.lexists(self.path / name) and not self.is_ours(name)]
        found, owned = [], self._is_owned()
        for entry in sorted(self.path.iterdir()):
            name = entry.name
            if entry.is_symlink() and fits(name, WRITTEN_TO):
                found.append(name)
            elif name.startswith(".") or name == REPLACED or fits(name, HARMLESS):
                continue
            elif fits(name, (CHECKPOINTS,)):
                found += [] if is_checkpoint(entry) or (owned and is_cut_off(entry)) else [name]
            elif entry.is_dir() and any((entry / mark).is_file() for mark in (MANIFEST, *CHECKPOINT_MARKS)):
                continue  # another folder of ours, or a checkpoint, whatever it is called now
            elif name in ("adapter", "onnx") and entry.is_dir():
                inner = (f"{name}/{each.name}" for each in sorted(entry.iterdir()) if not each.name.startswith("."))
                found += [each for each in inner if not self.is_ours(each)]
            elif owned and not fits(name, WRITTEN_TO):
                continue  # somebody put it beside what is ours, where it changes nothing
            elif not self.is_ours(name):
                found.append(name)
        return found

    # ---- What is ours ----

    @property
    def manifest(self) -> dict[str, Any]:
        """What this package wrote: `model`, the files of the model that is there, and `beside`, others, each with its
        size and digest, or `None` where a person may change it; `weights`, a digest; and other facts of a run."""
        empty = {"model": {}, "beside": {}, "weights": None}
        try:
            known = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            return empty | known if isinstance(known["model"], dict) and isinstance(known["beside"], dict) else empty
        except (OSError, ValueError, KeyError, TypeError):
            return empty

    @property
    def has_card(self) -> bool:
        """Whether the card is of the weights that are here, as far as it is known."""
        manifest = self.manifest
        return manifest["weights"] is not None and manifest["weights"] == manifest.get("card")

    def update(self, **facts: Any) -> None:
        """Writes facts into the manifest."""
        written = self.manifest | {"safe_clip": __version__} | facts
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / MANIFEST, json.dumps(written, indent=1) + "\n")

    def record(self, *names: str, editable: bool = False) -> None:
        """Notes files beside the model as ours, as they are now, or whatever a person makes of them."""
        beside = {name: None if editable else file_facts(self.path / name) for name in names}
        self.update(beside=self.manifest["beside"] | beside)

    def write(self, name: str, text: str, editable: bool = False) -> None:
        """Writes a text beside the model, whole or not at all; what others wrote under its name is moved away."""
        self.adopt()
        if os.path.lexists(self.path / name) and not self.is_ours(name) and not editable:
            self._set_aside(name)
        write_whole(self.path / name, text)
        self.record(name, editable=editable)

    def make_room(self, *names: str) -> None:
        """Moves files away, whoever wrote them."""
        for name in names:
            if os.path.lexists(self.path / name):
                self._set_aside(name)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """The path of a file that is written by somebody else, and then takes its place beside the model."""
        self.adopt()
        with whole_file(self.path / name) as partial:
            yield partial
            if os.path.lexists(self.path / name) and not self.is_ours(name):
                self._set_aside(name)
        self.record(name)

    def is_ours(self, name: str) -> bool:
        """Whether this package wrote a file, and nobody has changed it since."""
        path, manifest = self.path / name, self.manifest
        if not path.is_file() or any((self.path / each).is_symlink() for each in (name, *Path(name).parents[:-1])):
            return False  # what a link leads to is written by none of us
        if name in MARKS and has_mark(path):
            return True
        recorded = [part[name] for part in (manifest["model"], manifest["beside"]) if name in part]
        if recorded or name in MARKS:
            return None in recorded or file_facts(path) in recorded
        return fits(name, WRITTEN) and not self._is_claimed() and self._is_of_earlier_versions()

    def _is_claimed(self) -> bool:
        return (self.path / MANIFEST).is_file()

    def _is_owned(self) -> bool:
        """Whether a model was written here, or trained; not figures alone."""
        manifest = self.manifest
        return bool(manifest["model"] or manifest.get("run"))

    def _is_of_earlier_versions(self) -> bool:
        return any(has_mark(self.path / name) for name in MARKS if name != CARD)

    @property
    def to_push(self) -> list[str]:
        """The files that others shall have: what was written here, by name, and not what tells of the data."""
        manifest = self.manifest
        names = [*manifest["model"], *manifest["beside"]]
        return sorted(name for name in set(names) - {"bad_rows.txt"} if (self.path / name).is_file())

    # ---- Writing ----

    def claim(self, **facts: Any) -> None:
        """Notes the folder as this package's, removes what was cut off in an earlier run, and moves away what others
        put where is written. Under the lock, after `check`."""
        self.adopt()
        for stage in self.path.glob(f"{STAGE}*"):
            remove(stage)
        for name in self.foreign():
            if fits(name, FIRST_MOVED) or (self.path / name).is_symlink():
                self._set_aside(name)
        self.update(**facts)
        if CARD not in self.manifest["beside"] and self.is_ours(CARD):
            self.record(CARD, editable=True)

    def adopt(self) -> None:
        """Notes as ours what a version before the manifest wrote, before anything else is noted."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self._is_claimed() or not self._is_of_earlier_versions():
            return
        found = [path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()]
        ours = [name for name in found if name.count("/") < 2 and self.is_ours(name)]
        beside = {name: file_facts(self.path / name) for name in ours if name in (*FIGURES, "bad_rows.txt")}
        model = {name: file_facts(self.path / name) for name in ours if name not in beside and name != CARD}
        self.update(model=model, beside=beside)

    def make_way(self, checkpoint: str) -> None:
        """Removes an earlier checkpoint of ours whose place another takes; what others put there is moved away."""
        place = self.path / checkpoint
        for other in sorted(self.path.glob(CHECKPOINTS)):  # those too that a limit on their number would delete
            if not is_checkpoint(other):
                self._set_aside(other.name)
        if place.is_dir():
            shutil.rmtree(place)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from writing here; the system lets go of it when this one ends, however it does.

        Raises:
            UserError: another one writes here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if (self.path / LOCK).is_symlink():
            self._set_aside(LOCK)
        lock = FileLock(self.path.resolve() / LOCK, timeout=PATIENCE, is_singleton=True, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.option} {self.path}: another run writes there just now. Wait for its end, or name another "
                "folder."
            ) from None
        except (NotImplementedError, OSError) as error:  # a file system without locks
            logger.warning("%s cannot be locked (%s): see to it that one run alone writes there.", self.path, error)
            yield
            return
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A folder for a model's files, which take the place of those that are there once all are written.

        What goes with other weights, figures and the facts of the card, is removed before. Modes are those that the
        umask says.
        """
        with self.lock():
            self.claim()
            stage = Path(tempfile.mkdtemp(prefix=STAGE, dir=self.path))
            try:
                yield stage
                self._move_in(stage)
            finally:
                shutil.rmtree(stage, ignore_errors=True)

    def _move_in(self, stage: Path) -> None:
        new = {path.relative_to(stage).as_posix(): path for path in sorted(stage.rglob("*")) if path.is_file()}
        make_public_modes(new.values())
        old, known = self.manifest, {name: file_facts(path) for name, path in new.items()}
        weights = stored_weights_digest(stage)
        for name in new:
            for place in (*list(Path(name).parents)[-2::-1], Path(name)):
                target = self.path / place
                parent = place != Path(name)
                folder = target.is_dir() and not target.is_symlink()
                if os.path.lexists(target) and not (folder if parent else self.is_ours(name)):
                    self._set_aside(place.as_posix())
        for name in self._left_over(new):
            if name in old["model"] and self.is_ours(name):
                (self.path / name).unlink()
            else:
                self._set_aside(name)
        if weights != old["weights"]:
            self.forget_figures()
        # In between, whichever of the two a file is, it is ours, and of weights that no figure is of.
        self.update(model=dict.fromkeys({**old["model"], **known}), weights=None)
        for name, path in new.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, self.path / name)
        for folder in {(self.path / name).parent for name in old["model"]} - {self.path}:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        self.update(model=known, weights=weights)

    def _left_over(self, new: Collection[str]) -> list[str]:
        """What is there, is no part of what comes, and would change what others load, or was of the model before."""
        there = [path.relative_to(self.path).as_posix() for path in self.path.iterdir()]
        there += [f"adapter/{path.name}" for path in (self.path / "adapter").glob("*")]
        folders = {name.partition("/")[0] for name in new if "/" in name}
        loaded = [name for name in there if fits(name, LOADED) and name not in {*new, *folders}]
        model = [name for name in self.manifest["model"] if name not in new and (self.path / name).is_file()]
        return list(dict.fromkeys([*model, *(name for name in loaded if name not in model)]))

    def _set_aside(self, name: str) -> None:
        target = self.path / REPLACED / name
        for number in range(1, 1000):
            if not os.path.lexists(target):
                break
            target = self.path / REPLACED / f"{name}.{number}"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.path / name, target)
        logger.warning("%s was in the way and is now %s.", self.path / name, target)

    def forget_figures(self) -> None:
        """Removes what tells of weights that are there no more; of the card, what stands between its marks."""
        manifest = self.manifest
        for name in FIGURES:
            if self.is_ours(name):
                (self.path / name).unlink()
        if self.is_ours(CARD):
            from .card_text import forget_facts  # slow to import

            text = (self.path / CARD).read_text(encoding="utf-8")
            write_whole(self.path / CARD, forget_facts(text))
        self.update(beside={name: each for name, each in manifest["beside"].items() if name not in FIGURES}, card=None)


def check_writable(path: Path, option: str = "--output_dir") -> None:
    """Raises `UserError` where a folder cannot be made or written into: tried, since rights do not tell all."""
    cure = "Name a folder that can be written to."
    if os.path.islink(path) and not os.path.exists(path):
        raise UserError(f"{option} {path} is a link to {os.readlink(path)}, which is not there. {cure}")
    try:
        whole = there = Path(os.path.abspath(path))
        while not os.path.lexists(there):
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError
        if "\0" in str(path):
            raise ValueError("a name has no NUL character")
        for part in whole.relative_to(there).parts:
            if len(os.fsencode(part)) > os.pathconf(there, "PC_NAME_MAX"):
                raise OSError(f"the name {part[:20]}... is too long")
        with tempfile.NamedTemporaryFile(prefix=STAGE, dir=there) as file:
            file.write(b"x")
    except NotADirectoryError:
        raise UserError(f"{option} {path} cannot be written ({there} is no folder). {cure}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{option} {path} cannot be written ({error}). {cure}") from error
