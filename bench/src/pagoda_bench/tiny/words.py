"""Owns the closed word lists of the corpus and the made-up words that keep the models from memorizing them."""

from random import Random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COMMON = _words(
    """
    apple arm autumn bag ball bank bear bell big bird boat book bottle box branch bread bridge cabin cake calm camel candle car cat
    chair cheese clean clear clock cloud coat coffee cold cook corn cow cup dark deep deer desk dish doctor dog door dream dress dry
    duck earth east egg empty engine farm fast father field fire fish flag floor flower forest fork fox fresh friend frog fruit full
    garden gate gift glass goat gold grape grass happy hat heavy hill honey horse hot hotel house ice island juice key king kitchen
    knife lake lamp large leaf letter light lion little long loud lunch map milk money monkey moon morning mother mountain mouse music
    nest new night nut ocean old onion open orange page paint paper park piano quick quiet rabbit rain rice ring river road rock roof
    room rope rose round salt sand school sea seed sheep ship shirt shoe shop short silent silver sister sky slow small snow soap soft
    song soup spring star station stone storm story street strong sugar summer sun sweet table tall tea tiger town train tree valley
    wall warm water wave west wheel wide wind window winter wolf wood yard young
    """
)
GLUE = ("the", "a", "and", "of", "in", "is", "with", "on", "to", "for")
NAMES = _words(
    """
    Ada Alan Alice Amir Ana Anna Ben Bob Carla Carlos Chen Clara Daniel David Elena Emma Eva Fatima Felix Grace Hana Hugo Ida Ivan James
    Jan John Julia Karim Kofi Lara Laura Leo Lina Lucas Maria Mark Maya Mia Mina Nina Noah Nora Olga Omar Oscar Paul Pedro Peter Priya
    Rosa Sam Sara Sofia Tariq Tom Vera Victor Wei Yuki
    """
)
CITIES = _words(
    """
    Accra Amsterdam Athens Bangkok Berlin Bogota Boston Cairo Chicago Dakar Delhi Dublin Geneva Hamburg Hanoi Havana Helsinki Istanbul
    Kyoto Lagos Lima Lisbon London Madrid Manila Milan Moscow Mumbai Nairobi Oslo Paris Porto Prague Quito Rome Seoul Shanghai Singapore
    Sydney Tokyo Toronto Tunis Vienna Warsaw
    """
)
COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "white", "brown", "pink", "gray", "silver")
ANIMALS = ("dog", "cat", "rabbit", "horse", "parrot", "turtle", "goat", "hamster", "duck", "snake")
JOBS = ("baker", "teacher", "doctor", "farmer", "painter", "driver", "nurse", "cook", "singer", "pilot", "writer", "lawyer")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
FOODS = ("bread", "cheese", "soup", "rice", "pizza", "salad", "pasta", "cake", "fish", "honey")

_ONSETS = ("b", "br", "c", "ch", "d", "f", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "r", "s", "st", "t", "th", "tr", "v", "w", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ee", "ou")
_CODAS = ("", "", "n", "r", "l", "s", "t", "k", "m")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FOREIGN = "áäçéèêíñóöøúüßłžşабвгдежзиклмнопрстуαβγδεικλοπρ日本語中文字한국어"


def made_up_name(rng: Random) -> str:
    """A pronounceable capitalized word of two or three syllables, such as "Torenik"."""
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((2, 2, 3)))).capitalize()


def rare_word(rng: Random) -> str:
    """A lower-case word outside every list: random letters, syllables, a few of them beyond ASCII."""
    kind = rng.random()
    if kind < 0.5:
        return made_up_name(rng).lower()
    if kind > 0.95:
        return "".join(rng.choice(_FOREIGN) for _ in range(rng.randint(2, 4)))
    return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(3, 6)))


def person(rng: Random) -> str:
    return made_up_name(rng) if rng.random() < 0.3 else rng.choice(NAMES)


def city(rng: Random) -> str:
    return made_up_name(rng) if rng.random() < 0.2 else rng.choice(CITIES)
