"""Word lists and sentence makers that the tasks draw from."""

from __future__ import annotations

from random import Random

NAMES = """
Anna Bob Carol David Eve Frank Grace Henry Ivan Julia Kate Leo Maria Nora Oscar Paul Rosa Sam Tom
Uma Victor Wendy Alice Ben Clara Dan Emma Fred Gina Hugo Iris Jack Karl Lily Max Nina Otto Peter
Quinn Ruth Sara Theo Vera Will Zoe Adam Bella Chris Diana Eric
""".split()

CITIES = """
Paris Rome Berlin Madrid Oslo London Vienna Lisbon Prague Dublin Athens Tokyo Cairo Lima Delhi
Boston Sydney Toronto Moscow Warsaw Geneva Seoul Denver Chicago
""".split()

COLORS = "red blue green yellow black white pink brown orange purple gray gold silver".split()

OBJECTS = """
key box book lamp chair bag coat hat bike car phone cup ring map pen clock door card boat ball
letter ticket umbrella bottle camera
""".split()

# What sorting and reversing draw from: at least two for almost every first letter.
WORDS = """
apple ant arm axe bear bird boat book cake car cat cloud coat cow dog door duck dust eagle ear
earth egg farm fig fire fish flag frog game gate goat gold grape hand hat hill home horse ice ink
iron island jam jar jeans juice kite king key lake lamp leaf lemon lion map milk moon mouse nail
nest night nose oak oil onion owl paper peach pear pen pig queen quilt rain rice river road rose
salt sand sea ship snow star sun table tent time tree train under uncle van vase violin wall water
west wind wolf yard yarn year zebra zero zoo red blue green black white pink brown yellow orange
gold big cold dark easy fast good hot kind late mild new old plain quick rich slow tall ugly vast
warm young
""".split()

FRUITS = "apples pears plums grapes cherries figs lemons peaches melons dates nuts olives".split()
PETS = "cat dog bird fish horse rabbit hamster turtle".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
LANGUAGES = "French German Spanish Italian Dutch Polish Greek Danish".split()

ADJECTIVES = """
old small quiet tall warm cold bright dark long short heavy light clean dusty soft empty broken
gentle narrow wide
""".split()
NOUNS = """
river house garden road window table bridge forest field market train station street tower school
library kitchen mountain lake harbor village shop wall roof hill park office farm church museum
""".split()
VERBS = """
stood waited rested moved turned stayed shone looked appeared slept worked stopped opened closed
changed returned
""".split()
PLACES = (
    """
near the river|by the road|in the morning|at night|after lunch|before dawn|in the rain
under the trees|behind the house|across the street|on the hill|for a long time|without a sound
in winter|in the old town|next to the station|over the lake|all day|once again|in the sun
""".strip()
    .replace("\n", "|")
    .split("|")
)
PEOPLE = """
people children workers farmers students tourists birds dogs boats trains clouds friends
""".split()
ACTIONS = (
    """
came late|went home|talked about the weather|waited for the bus|crossed the bridge|sang a song
sat in the shade|bought some bread|looked at the map|read the news|walked along the wall|drank tea
closed the door|played in the park|slept well|worked on the roof
""".strip()
    .replace("\n", "|")
    .split("|")
)

_ONSETS = "b c d f g h j k l m n p r s t v w z br cl dr fl gr pl st tr sh ch th".split()
_VOWELS = "a e i o u ai ea oo".split()
_CODAS = ["", "", "n", "r", "s", "t", "l", "m", "k", "nd", "st", "rn"]


def pseudo_word(rng: Random) -> str:
    """A pronounceable word that is probably none, of one or two syllables."""
    parts = [
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.randint(1, 2))
    ]
    return "".join(parts)


def word(rng: Random) -> str:
    """A word to sort, to reverse or to carry about: mostly a common one."""
    return rng.choice(WORDS) if rng.random() < 0.92 else pseudo_word(rng)


def name(rng: Random) -> str:
    """A person's name: mostly a common one."""
    return rng.choice(NAMES) if rng.random() < 0.93 else pseudo_word(rng).capitalize()


def filler(rng: Random) -> str:
    """One plain sentence that holds no fact a task asks about."""
    kind = rng.randrange(4)
    if kind == 0:
        subject = f"The {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
        return f"{subject} {rng.choice(VERBS)} {rng.choice(PLACES)}."
    if kind == 1:
        return f"Some {rng.choice(PEOPLE)} {rng.choice(ACTIONS)} {rng.choice(PLACES)}."
    if kind == 2:
        return f"It was {rng.choice(ADJECTIVES)} {rng.choice(PLACES)}."
    return f"The {rng.choice(PEOPLE)} {rng.choice(ACTIONS)}."
