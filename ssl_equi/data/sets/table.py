"""The table of data sets: what is known of each before it is opened, and what opens it.

A data set is a function that opens it, in a file of this folder, and a line of `@dataset` above it.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_equi.data.collection import Rgb, ViewCollection
from ssl_equi.latents.schema import LatentSchema

# Licences of weights by what the manifest of their data states, as the Hugging Face hub spells them.
_LICENCES = {
    "CC-BY-NC-4.0": "cc-by-nc-4.0",
    "CC-BY-4.0": "cc-by-4.0",
    "CC-BY-SA-4.0": "cc-by-sa-4.0",
    "CC0-1.0": "cc0-1.0",
}


@dataclass(frozen=True)
class DataSource:
    """Images to train on and images to judge on, with the normalisation of the former."""

    name: str
    train: ViewCollection
    """What the encoder learns from."""
    probe_train: ViewCollection
    """What the final heads learn from: the labelled training images, as large as those of `evaluation`."""
    evaluation: ViewCollection
    """What the final heads are judged on."""
    mean_rgb: Rgb
    std_rgb: Rgb
    license: str | None = None
    """Terms of the training images, where their manifest states them for views with poses."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers must know of the images, such as that they are not of their stored size."""

    def normalised_with(self, mean_rgb: Rgb | None, std_rgb: Rgb | None) -> "DataSource":
        """The same images with another normalisation; None leaves what it is."""
        return dataclasses.replace(self, mean_rgb=mean_rgb or self.mean_rgb, std_rgb=std_rgb or self.std_rgb)

    @property
    def has_poses(self) -> bool:
        """True if rotations and colours of the views are known, so that the encoder can be probed for them."""
        return self.evaluation.quats_xyzw is not None

    @property
    def licence_of_weights(self) -> str:
        """Of an encoder that learnt from these images, as the Hugging Face hub spells it."""
        known = DATASETS.get(self.name)
        return (known and known.licence) or _LICENCES.get(self.license or "", "other")


@dataclass(frozen=True)
class Place:
    """Where a data set lies."""

    folder: Path | None
    """Local folder, which holds at least what is judged; None if the user named none."""
    fetched: bool = False
    """True if the folder is a copy of an address, so that nothing is to be made there."""
    streamed: bool = False
    """True if the training split is read from front to back instead of by index."""
    address: str | None = None
    """Where a streamed training split lies, if not in the folder."""


OpenFunction = Callable[["DataSet", Place, str, int], DataSource]


@dataclass(frozen=True)
class DataSet:
    """A line of the table."""

    name: str
    open: OpenFunction
    """From this line, the place, the split that is judged and the side of the encoder's images."""
    embedded: bool = False
    """Renders itself where it isn't there."""
    posed: bool = False
    """Its views have known latents."""
    schema: LatentSchema | None = None
    """Of these latents, in which objects may move less; None: as the manifest states."""
    side: int | None = None
    """Pixels of the stored images, for sets that are decoded into memory."""
    may_lie_elsewhere: bool = True
    """False for what isn't kept in shards."""
    splits: tuple[str, ...] | None = None
    """Those that may be judged; None: any."""
    licence: str | None = None
    """Of weights that learn from it, as the Hugging Face hub spells it; None: as the manifest states."""
    ood_rotation_of: str | None = None
    """Split whose objects its split ood_rotation shows under rotations never trained on; None: it can't have one."""

    def holds(self, schema: LatentSchema) -> bool:
        """Whether views with these latents can be opened as this set."""
        if self.schema is None:
            return True
        moves, own_moves = schema.scene_translation, self.schema.scene_translation
        return moves is not None and own_moves is not None and bool(moves) == bool(own_moves)

    def counterpart(self, schema: LatentSchema) -> str:
        """The set of the same kind with another schema: the one whose objects move instead of the one whose don't."""
        for other in DATASETS.values():
            if other.embedded == self.embedded and other.schema is not None and other.holds(schema):
                return other.name
        return "posed"


DATASETS: dict[str, DataSet] = {}


def dataset(*names: str, **known: Any) -> Callable[[OpenFunction], OpenFunction]:
    """Enters data sets that a function opens into the table, with what is `known` of them: the fields of `DataSet`."""

    def enter(open_function: OpenFunction) -> OpenFunction:
        DATASETS.update({name: DataSet(name, open_function, **known) for name in names})
        return open_function

    return enter


def resized_note(name: str, stored_side: int, image_size: int) -> str:
    """What a reader must know of images that aren't of their stored size."""
    how = "shrunk" if image_size < stored_side else "enlarged, which adds no detail,"
    stored, wanted = (f"{side} x {side}" for side in (stored_side, image_size))
    return f"the stored images of {name} have {stored} pixels and are {how} to {wanted}"
