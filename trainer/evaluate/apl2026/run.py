"""The protocol of the paper's authors from top to bottom: who is looked for, by whom, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apl_guard.errors import InvalidInput
from apl_guard.policy import Policy
from apl_guard.prefix import Prefix
from apl_guard.trainer import minifaces
from apl_guard.trainer.config import NeutralKind
from apl_guard.trainer.data.identities import load_identities
from apl_guard.trainer.evaluate.apl2026 import protocol
from apl_guard.trainer.evaluate.apl2026.clip import Clip
from apl_guard.trainer.evaluate.apl2026.faces import FaceJudge
from apl_guard.trainer.evaluate.apl2026.protocol import Group, apl_2026
from apl_guard.trainer.evaluate.apl2026.references import References, read_references
from apl_guard.trainer.evaluate.asking import people_of
from apl_guard.trainer.evaluate.provenance import provenance
from apl_guard.trainer.evaluate.reference_world import require_reference_world
from apl_guard.trainer.evaluate.result import Album, EvalResult
from apl_guard.trainer.evaluate.setting import Setting, pictures_folder
from apl_guard.trainer.model.families import family_of


def evaluate_apl_2026(
    pipe: Any,
    prefix: Prefix,
    *,
    policy: Policy | str | Path | None = None,
    faces: FaceJudge | None = None,
    identities: Sequence[Path] = (),
    references: Path | None = None,
    references_per_person: int = 1,
    clip: Clip | None = None,
    captions: Sequence[str] = (),
    people_limit: int | None = None,
    neutral: NeutralKind = "coarse",
    folder: Path | None = None,
    keep_images: bool = False,
    progress: bool = True,
) -> EvalResult:
    """Measure a prefix as the paper's authors do.

    Args:
        pipe: A model of a family that can be trained on.
        prefix: The prefix.
        policy: Under which the guard acts, a file, or the name of a built-in policy; default "anonymize_faces".
        faces: Who says how alike faces are; default, with the people of the reference world, its judges.
        identities: Files of people; each is a group of its own under the file's name. None: the seen and the unseen
            people of the reference world.
        references: Folder with a folder of pictures of each person.
        references_per_person: How many of them to take.
        clip: For CLIPScore and the Fréchet distance.
        captions: Prompts without names, for the quality of other pictures.
        people_limit: At most so many people of each group, the first.
        neutral: What the neutral prompt keeps.
        folder: Where pictures are kept; default a folder of the user's cache.
        keep_images: Whether the result holds pictures.
        progress: Whether to draw progress bars.

    Raises:
        InvalidInput: Of people, reference pictures and recogniser some are given and others not; or what
            `read_references` refuses.
        ModelInvalid: No people are given, and the model is not of the reference world.
        PolicyInvalid: The policy cannot be used, or its own tests fail.
        PolicyBlocked: It refuses what is asked.
        IdentitiesInvalid: An identities file is wrong.
        PrefixNotFound: The prefix belongs to another text encoder.
    """
    require_together(identities, references, faces)
    if not identities:
        require_reference_world(pipe)
    judge: FaceJudge = faces or minifaces.judges()
    album = Album()
    family = family_of(pipe)
    setting = Setting.of(
        pipe, prefix, judge, policy, seed=protocol.SEED, steps=protocol.STEPS, guidance=protocol.GUIDANCE,
        images_per_person=protocol.IMAGES_PER_PERSON, people_limit=people_limit, neutral=neutral,
        folder=folder or pictures_folder(),
        progress=progress, album=album if keep_images else None,
    )  # fmt: skip
    if identities:
        assert references is not None
        groups = {
            path.stem: _group_of(path, references, judge, references_per_person, people_limit, neutral)
            for path in identities
        }
        if len(groups) < len(identities):
            raise InvalidInput("two files have the same name; groups are called by it", where="identities")
    else:
        groups = _groups_of_the_reference_world(setting)
    figures = apl_2026(setting, groups, judge, captions, clip)
    return EvalResult(
        suites=figures,
        settings={
            "protocol": "apl-2026",
            "faces": judge.name,
            "clip": None if clip is None else clip.name,
            "seed": protocol.SEED,
            "steps": protocol.STEPS,
            "guidance": family.guidance_of_protocol(protocol.GUIDANCE),
            "scheduler": (family.protocol_sampler or type(pipe.scheduler)).__name__,
            "precision": str(family.network.dtype).removeprefix("torch."),
            "people": {name: len(group.people) for name, group in groups.items()},
            "reference_pictures": {name: group.references.pictures for name, group in groups.items()},
            "thresholds": {name: group.references.thresholds for name, group in groups.items()},
            **provenance(setting),
        },
        images=album.images,
        asked=album.asked,
    )


def require_together(identities: Sequence[Path], references: Path | None, faces: FaceJudge | None) -> None:
    """Make sure that people, their reference pictures and a recogniser are all given, or none of them.

    Raises:
        InvalidInput: Some are missing.
    """
    given = {"people": identities or None, "reference images": references, "a recogniser": faces}
    missing = " and ".join(name for name, value in given.items() if value is None)
    if missing and any(value is not None for value in given.values()):
        raise InvalidInput(f"{missing} missing; people, their reference images and a recogniser go together")


def _group_of(
    path: Path, references: Path, faces: FaceJudge, per_person: int, limit: int | None, neutral: NeutralKind
) -> Group:
    people = load_identities(path)
    stand_ins = {person.name: people.neutral(k, neutral) for k, person in enumerate(people.identities[:limit])}
    return Group(stand_ins, read_references(references, list(stand_ins), faces, per_person))


def _groups_of_the_reference_world(setting: Setting) -> dict[str, Group]:
    """Its seen and its unseen people, looked for among all whom the model knows."""
    judges = minifaces.judges()
    names = tuple(person.name for person in minifaces.known_people())
    known = References(names, judges.gallery.embeddings[judges.gallery.rows(names)], judges.thresholds, len(names))
    return {
        split: Group({person.name: person.neutral(setting.neutral) for person in people_of(setting, split)}, known)
        for split in ("seen", "unseen")
    }
