"""The language of ShapeWorld: many wordings for prompts and questions, one for answers.

Users word the same request differently, so prompts and questions are drawn from the lists here. Answers have
one fixed grammar (`caption`, `describe_thing`), so that their correctness is decidable.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from omnigen2.nano.world.scene import COLOURS, SHAPES, SIZES, Scene, Thing, pick

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
CANNOT_TELL = "I can't tell"

_NOUNS = {
    "circle": ("circle",) * 9 + ("disc", "disk", "round shape"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",) * 9 + ("five-pointed star",),
    "heart": ("heart",) * 9 + ("heart shape",),
}
_COLOURS = {"gray": ("gray", "grey"), "purple": ("purple",) * 7 + ("violet",)}
_SIZES = {
    "small": ("small", "small", "small", "tiny", "little"),
    "medium": ("medium", "medium-sized", "medium sized", "mid-sized"),
    "large": ("large", "large", "large", "big", "big", "huge"),
}
ANYTHING = ("shape", "thing", "object", "figure")
_PLACES = {
    "left": (
        "on the left",
        "on the left",
        "at the left",
        "on the left side",
        "to the left",
        "at the left edge",
    ),
    "right": (
        "on the right",
        "on the right",
        "at the right",
        "on the right side",
        "to the right",
        "at the right edge",
    ),
    "top": ("at the top", "at the top", "on top", "in the upper part", "at the upper edge", "near the top"),
    "bottom": ("at the bottom", "at the bottom", "in the lower part", "at the lower edge", "near the bottom"),
    "centre": (
        "in the center",
        "in the centre",
        "in the middle",
        "at the center",
        "at the centre",
        "in the very middle",
    ),
}
_UPPER, _LOWER = ("top", "top", "upper"), ("bottom", "bottom", "lower")
_RELATIONS = {
    "left of": ("left of", "to the left of", "to the left of", "on the left of", "on the left side of"),
    "right of": ("right of", "to the right of", "to the right of", "on the right of", "on the right side of"),
    "above": ("above", "above", "over", "on top of", "higher than"),
    "below": ("below", "below", "under", "beneath", "underneath"),
}
_BACKGROUNDS = (
    *("on a {} background",) * 6,
    *("on {}",) * 3,
    "with a {} background",
    "with a {} background",
    "against a {} background",
    "against {}",
    "over a {} background",
    "in front of a {} background",
    "on a plain {} background",
    "on a solid {} background",
    "on {} background",
    "on the {} background",
    "on a {} backdrop",
    "on a {} canvas",
    "on a {} image",
    "in a {} picture",
)
_OPENINGS = (
    *(
        "a picture of ",
        "an image of ",
        "picture of ",
        "image of ",
        "draw ",
        "draw me ",
        "generate ",
        "create ",
    ),
    *("make ", "paint ", "show ", "show me ", "give me ", "please draw ", "I want ", "I'd like ", "render "),
    *("a drawing of ", "an illustration of ", "a picture with ", "an image with ", "an image showing "),
    *(
        "draw a picture of ",
        "generate an image of ",
        "create an image with ",
        "make a picture of ",
        "there is ",
    ),
    *("can you draw ", "could you make ", "I need ", "a simple picture of ", "a flat illustration of "),
    *("an icon of ", "an icon: ", "a sketch of ", "a photo of ", "a scene with ", "a minimalist picture of "),
    *("create a simple illustration featuring ", "design ", "produce an image of ", "I would like "),
)
_GROUPS = {2: ("a pair of", "a couple of"), 3: ("a group of three", "a trio of"), 4: ("a group of four",)}
_UNTOUCHED = (
    *(" and keep everything else the same", ", keep everything else unchanged", ", leave the rest as it is"),
    *(" but leave everything else as it is", ". Do not change anything else", " and nothing else"),
)
READ_AS = {
    "a picture": ("an icon", "a sketch", "a scene", "an artwork", "a graphic", "a pic", "a photograph"),
    "picture": ("icon", "pic", "photograph", "artwork", "logo"),
    "pictures": ("icons", "pics", "photographs", "artworks", "logos"),
    "background": ("canvas",),
    "draw": ("design", "sketch", "depict"),
    "generate": ("produce",),
    "create": ("craft", "compose", "build"),
    "show": ("display",),
    "i want": ("i'd love", "i'd prefer", "i would like", "i would love", "i would prefer", "i wish for"),
    "with": ("featuring", "containing", "having"),
    "simple": ("minimalist", "minimalistic"),
    "two": ("a pair of", "a couple of", "a duo of"),
    "three": ("a trio of", "a group of three"),
    "four": ("a group of four", "a quartet of"),
    "small": ("mini", "miniature"),
    "large": ("giant", "enormous", "massive"),
    "circle": ("ball", "dot"),
    "circles": ("balls", "dots"),
    "object": ("item", "element"),
    "objects": ("items", "elements"),
    "change": ("modify", "alter"),
    "paint": ("repaint",),
    "color": ("tint",),
    "turn": ("morph",),
    "remove": (
        *("eliminate", "discard", "hide", "wipe out", "wipe away", "wipe"),
        *("cut out", "throw out", "throw away", "clear away"),
    ),
    "add": ("include", "append", "attach"),
    "move": ("relocate", "reposition", "slide", "push", "drag", "transfer"),
    "enlarge": ("expand", "magnify"),
    "shrink": ("downsize",),
    "reduce": ("decrease",),
    "replace": ("substitute",),
    "swap": ("exchange",),
    "combine": ("unite", "join", "assemble"),
    "left": ("left-hand", "lefthand"),
    "right": ("right-hand", "righthand"),
    "next to": ("adjacent to", "by the side of"),
    "near": ("close to",),
    "on top of": ("atop",),
    "sitting": ("that sits", "which sits"),
}
"""Synonyms by the vocabulary word that the tokenizer replaces them with. Of two with a common beginning, the
longer one comes first."""


class Speaker:
    """Random wordings, all drawn from one generator."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def pick(self, *choices: str) -> str:
        """One of the wordings, each as likely."""
        return pick(self.rng, choices)

    def colour(self, colour: str) -> str:
        return pick(self.rng, _COLOURS.get(colour, (colour,)))

    def size(self, size: str) -> str:
        return pick(self.rng, _SIZES[size])

    def noun(self, shape: str | None, plural: bool = False) -> str:
        """A noun for a shape, or a general one (`thing`) for None."""
        return pick(self.rng, _NOUNS[shape] if shape else ANYTHING) + ("s" if plural else "")

    def relation(self, relation: str) -> str:
        return pick(self.rng, _RELATIONS[relation])

    def place(self, place: str) -> str:
        """A place: `on the left`, `in the upper right corner`, ..."""
        if place in _PLACES:
            return pick(self.rng, _PLACES[place])
        vertical, horizontal = place.split()
        corner = f"{pick(self.rng, _UPPER if vertical == 'top' else _LOWER)} {horizontal}"
        corner = corner.replace(" ", "-") if self.chance(0.2) else corner
        return self.pick(
            f"in the {corner} corner", f"in the {corner} corner", f"at the {corner}", f"in the {corner}"
        )

    def words(
        self, shape: str | None, colour: str | None, size: str | None = None, plural: bool = False
    ) -> str:
        """A noun phrase without article: `small red circle`; properties that are None are left out."""
        noun = self.noun(shape, plural)
        before = [self.size(size)] if size else []
        if colour is None:
            return " ".join([*before, noun])
        tint = self.colour(colour)
        form = self.rng.random()
        if form < 0.03:
            return " ".join([*before, noun, "that are" if plural else "that is", tint])
        if form < 0.05:
            return " ".join([*before, noun, "in", tint])
        if form < 0.07:
            return " ".join([*before, noun, self.pick("coloured", "colored"), tint])
        if form < 0.1:
            tint = self.pick(f"{tint}-colored", f"{tint} colored", f"{tint}-coloured")
        return " ".join([tint, *before, noun] if size and self.chance(0.12) else [*before, tint, noun])

    def several(self, count: int, shape: str | None, colour: str | None, size: str | None = None) -> str:
        """One or several new things: `a red circle`, `3 small purple stars`."""
        words = self.words(shape, colour, size, plural=count > 1)
        if count > 1 and self.chance(0.06):
            return f"{pick(self.rng, _GROUPS[count])} {words}"
        if count > 1:
            return f"{self.pick(NUMBERS[count], NUMBERS[count], str(count))} {words}"
        return self.pick(with_article(words), with_article(words), with_article(words), with_article(words),
                         words, f"one {words}", f"a single {words}")  # fmt: skip

    def background(self, colour: str) -> str:
        """The background as an adverbial: `on a blue background`."""
        return pick(self.rng, _BACKGROUNDS).format(self.colour(colour)).replace("a orange", "an orange")

    def backdrop(self, colour: str) -> str:
        """The background as a noun phrase: `a blue background`."""
        background = with_article(
            f"{self.colour(colour)} {self.pick('background', 'background', 'backdrop')}"
        )
        return self.pick(background, background, background.split(" ", 1)[1])

    def image(self, index: int, count: int = 5) -> str:
        """The reference image with that index, from 0, of `count`: `the second image`, `image 2`."""
        noun = self.pick("image", "image", "image", "picture", "picture", "photo")
        forms = [f"the {ORDINALS[index]} {noun}"] * 3 + [f"{noun} {index + 1}"] * 3
        forms += [
            f"the {ordinal_digit(index)} {noun}",
            f"{noun} {NUMBERS[index + 1]}",
            f"{noun} #{index + 1}",
            f"reference {noun} {index + 1}",
        ]
        if count > 1 and index == count - 1:
            forms.append(f"the last {noun}")
        return pick(self.rng, forms)

    def opening(self) -> str:
        """The beginning of a prompt (`draw `); empty in half of the cases."""
        return pick(self.rng, _OPENINGS) if self.chance(0.5) else ""

    def untouched(self) -> str:
        """A request to leave the rest unchanged, to follow an instruction; mostly empty."""
        return pick(self.rng, _UNTOUCHED) if self.chance(0.08) else ""

    def finish(self, text: str, question: bool = False) -> str:
        """The sentence with random capitalisation, punctuation and politeness."""
        text = " ".join(text.split()).replace(" ,", ",")
        if not question and self.chance(0.06):
            text = (
                f"please {text}"
                if self.chance(0.5)
                else f"{text}, please"
                if self.chance(0.5)
                else f"{text} please"
            )
        if self.chance(0.5):
            text = text[0].upper() + text[1:]
        end = self.rng.random()
        if question:
            text += "" if end < 0.15 else "?"
        else:
            text += "." if end < 0.35 else "!" if end < 0.38 else ""
        return text.upper() if self.chance(0.02) else text


def with_article(words: str) -> str:
    """The words with `a` or `an` before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def ordinal_digit(index: int) -> str:
    """Return `1st` for 0, `2nd` for 1, ..."""
    return f"{index + 1}{('st', 'nd', 'rd', 'th', 'th')[index]}"


def listing(parts: Sequence[str], oxford: bool = False) -> str:
    """The parts joined with commas and a last `and`."""
    if len(parts) < 2:
        return "".join(parts)
    comma = "," if oxford and len(parts) > 2 else ""
    return f"{', '.join(parts[:-1])}{comma} and {parts[-1]}"


def describe_thing(thing: Thing, count: int = 1) -> str:
    """One kind of thing in the grammar of answers: `a small red circle`, `two large blue stars`."""
    words = f"{thing.size} {thing.colour} {thing.shape}"
    return with_article(words) if count == 1 else f"{NUMBERS[count]} {words}s"


def kinds(scene: Scene) -> list[tuple[Thing, int]]:
    """One thing of each kind (placed at 0, 0) and the number of equal ones, by colour, shape and size.

    An order by position would be ambiguous where positions are almost equal.
    """
    counts = Counter((t.colour, t.shape, t.size) for t in scene.things)
    order = sorted(
        counts, key=lambda k: (tuple(COLOURS).index(k[0]), SHAPES.index(k[1]), tuple(SIZES).index(k[2]))
    )
    return [(Thing(shape, colour, size, 0, 0), counts[colour, shape, size]) for colour, shape, size in order]


def caption(scene: Scene) -> str:
    """The caption of a scene: its kinds of things with their numbers, then the background."""
    parts = [describe_thing(thing, count) for thing, count in kinds(scene)]
    return f"{listing(parts)} on {with_article(scene.background)} background"
