"""The sentences of the page: why a question is asked, what accuracy is measured on, and whether to label more."""

from collections.abc import Mapping, Sequence

from rarebox.core.text import counted
from rarebox.pool.similar import SIMILARITY

UNSTABLE = 1.0
"""The value of u(b), of at most 1.3, above which the page says that the guess changes between views."""

FEW_IMAGES = 20
"""Below this number of held-out images, the page calls AP a rough trend."""

FEWEST_BOXES = 20
"""The page shows no AP that would rest on fewer held-out boxes."""

FIRST_IMAGE = "Draw a box around every object. The first model is trained on fully labelled images."
FURTHER_IMAGE = "The first model is being trained. Meanwhile, box one more photo: the next model learns from it."
RANDOM_IMAGE = (
    "Draw a box around every object. This photo was picked at random; the program is still looking for the photos that "
    "differ most."
)
EXPLORED = "Draw a box around every object. The detector cannot find some classes yet, and a whole photo may show them."
RANKED_IMAGE = "This photo should be the most useful for your time. Check its boxes, and draw every object without one."
DRAWN = "An annotator drew this box."


def reason(name: str, count: int, total: int, classes: int, why: Mapping[str, float]) -> str:
    """Why a box is asked about.

    ``name`` is the class guessed, with ``count`` of ``total`` labels; ``why`` holds the query's ``score`` and
    ``uncertainty`` where they are known, ``added``, the score that another detector gave, or the similarity to an
    example that somebody chose. A class with less than
    half of its even share of the labels is called rare.
    """
    rare = total > 0 and count / total < 0.5 / classes
    guess = f"It looks like {name}" + (f", a rare class ({count} of {total} labels so far)" if rare else "")
    if SIMILARITY in why:
        return f"An annotator searched for boxes like an example. This box resembles it ({why[SIMILARITY]:.0%})."
    if "added" in why:
        return f"{guess}; another detector is {why['added']:.0%} sure."
    if why.get("uncertainty", 0) > UNSTABLE:
        return f"{guess}; the guess changes when the picture is altered slightly."
    return f"{guess}; the detector is {why['score']:.0%} sure." if "score" in why else f"{guess}."


def held_out(images: int, boxes: int, asking: bool) -> str:
    """What the accuracy is measured on. ``asking``: initial images are still being labelled."""
    if 0 < boxes < FEWEST_BOXES:
        return (
            f"No accuracy is shown: it would rest on {counted(boxes, 'held-out box', 'held-out boxes')}, and fewer "
            f"than {FEWEST_BOXES} say little. A new project holds out more if it starts with more images: "
            "rarebox init … --set initial_images=20."
        )
    if boxes:
        note = f"Accuracy (AP50) is measured on {counted(images, 'held-out image')} ({counted(boxes, 'box', 'boxes')})."
        return f"{note} Read it as a rough trend." if images < FEW_IMAGES else note
    if asking:
        return "One of every five initial images is held out to measure accuracy. No model is trained on it."
    if images:
        return f"Accuracy cannot be measured: there are no boxes on the {counted(images, 'held-out image')}."
    return "Accuracy is not measured: no initial image was held out. With five or more of them, a random fifth is."


def advice(measured: Sequence[tuple[int, float]], confirmed: float | None) -> str | None:
    """Whether to label more. ``measured`` holds the reviews and AP50 of each evaluated cycle; ``confirmed`` is the
    fraction of this cycle's guesses that annotators confirmed. None if neither is conclusive."""
    agreed = f"Annotators confirm {confirmed:.0%} of the guesses." if confirmed is not None else ""
    if len(measured) < 2 or (reviews := measured[-1][0] - measured[-2][0]) < 1:
        return agreed or None
    gain = (measured[-1][1] - measured[-2][1]) / reviews * 100
    when = "per 100 answers in the last cycle"
    if gain >= 0.01:
        said = f"Accuracy (AP50) rose by {gain:.2f} {when}: more labels are worthwhile."
    elif confirmed is not None and confirmed >= 0.9:
        said = f"Accuracy (AP50) changed by {gain:+.2f} {when}: the labels may be enough."
    else:
        said = f"Accuracy (AP50) changed by {gain:+.2f} {when}: label one more cycle before you stop."
    return f"{said} {agreed}".strip()
