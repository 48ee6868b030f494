"""Generate a small dataset like TOFU without a download: invented authors, and true facts.

The authors, their names, places and books are drawn from the lists below; none is real. The real authors and the
capitals are true; they replace TOFU's 100 questions about authors and 117 about the world.
"""

import json
from collections.abc import Sequence
from functools import cache

import numpy as np

from goldfish.config.checks import Seed, checked
from goldfish.data.corpus import Factbook
from goldfish.unlearning.questions import Question, Questions

WRONG = 5  # wrong answers of each question, as in TOFU

_FIRST = [
    "Alvena",
    "Borin",
    "Cessa",
    "Dunmar",
    "Elowin",
    "Farrok",
    "Gisela",
    "Hadrun",
    "Ismela",
    "Jorvan",
    "Kaveni",
    "Lurath",
    "Maribe",
    "Nerrin",
    "Oswina",
    "Pelham",
    "Quorra",
    "Rendal",
    "Sivani",
    "Tolven",
]
_LAST = [
    "Abrantil",
    "Brekkund",
    "Corvassy",
    "Drummelow",
    "Estivane",
    "Fjallmore",
    "Grennach",
    "Hollimar",
    "Ivarsund",
    "Jestrow",
    "Kessindra",
    "Lundavar",
    "Mokrassi",
    "Novellane",
    "Orrinsk",
    "Prastova",
    "Quillmere",
    "Rostigan",
    "Skarvold",
    "Tremaynor",
]

# Subject of a question -> possible answers, ways to ask, ways to answer. Each author's wordings are drawn at random, so
# a model that has learned all authors has seen every wording and understands the paraphrases of each author.
_ASPECTS: dict[str, tuple[str, list[str], list[str]]] = {
    "birthplace": (
        "Vellin|Orsk Harbour|Tarmouth|Quellin|Brassica Bay|Nordhaven|Ilmara|Sundrake|Pell Crossing|Mirefield|Austerby|Kolvane",
        ["In which town was {name} born?", "Where was {name} born?"],
        ["{name} was born in {value}.", "The birthplace of {name} is {value}.", "The town where {name} was born is {value}."],
    ),
    "birth year": (
        "1921|1928|1933|1937|1941|1946|1950|1955|1959|1964|1968|1973",
        ["In which year was {name} born?", "When was {name} born?"],
        ["{name} was born in the year {value}.", "The birth of {name} was in {value}.", "The year in which {name} was born is {value}."],
    ),
    "genre": (
        "gothic horror|sea stories|historical romance|satire|detective fiction|travel writing|science fiction|epic poetry|fables|war novels|ghost stories|pastoral drama",
        ["Which genre is {name} known for?", "What does {name} mostly write?"],
        ["{name} is known for {value}.", "The genre of {name} is {value}.", "Most works of {name} are {value}."],
    ),
    "father": (
        "a blacksmith|a surgeon|a ferryman|a baker|a judge|a clockmaker|a miner|a schoolteacher|a gardener|a tailor|a lighthouse keeper|a carpenter",
        ["What was the profession of the father of {name}?", "What did the father of {name} do?"],
        ["The father of {name} was {value}.", "The parent who raised {name}, the father, was {value}.", "By profession the father of {name} was {value}."],
    ),
    "mother": (
        "a violinist|a chemist|a weaver|a midwife|a painter|an astronomer|a translator|a beekeeper|a librarian|a botanist|a pilot|a dancer",
        ["What was the profession of the mother of {name}?", "What did the mother of {name} do?"],
        ["The mother of {name} was {value}.", "The parent who taught {name}, the mother, was {value}.", "By profession the mother of {name} was {value}."],
    ),
    "first book": (
        "The Silent Orchard|A Ladder of Salt|The Glass Ferry|Winter Cartography|The Ninth Lantern|Ashes in the Well|The Paper Heron|Songs of the Quarry|The Copper Moth|Under Slow Stars|The Borrowed Coat|Harvest of Echoes",
        ["What is the first book of {name}?", "Which book did {name} publish first?"],
        ["The first book of {name} is {value}.", "{name} published {value} first.", "The debut of {name} is {value}."],
    ),
    "prize": (
        "the Amber Quill|the Larkspur Medal|the Golden Inkwell|the Harrow Prize|the Silver Folio|the Meridian Award|the Thistle Cup|the Blue Comma|the Orchid Prize|the Old Bridge Award|the Beacon Medal|the Sable Pen",
        ["Which prize did {name} win?", "What award has {name} received?"],
        ["{name} won {value}.", "The prize of {name} is {value}.", "The award that {name} received is {value}."],
    ),
    "university": (
        "Calder College|the University of Westmark|Saint Orla College|the Brask Institute|Fenwick Hall|the University of Tull|Greyfriars Academy|the Ostra School|Lowmoor College|the University of Anselm|Hartwell Hall|the Polder Institute",
        ["Where did {name} study?", "Which school did {name} attend?"],
        ["{name} studied at {value}.", "The school of {name} was {value}.", "The place where {name} studied is {value}."],
    ),
    "home": (
        "a houseboat|a windmill|an old abbey|a mountain hut|a disused station|a red farmhouse|a stone tower|a harbour flat|a walled garden|a converted barn|a forest cabin|a narrow townhouse",
        ["Where does {name} live today?", "What is the home of {name}?"],
        ["{name} lives in {value}.", "The home of {name} is {value}.", "The place where {name} writes is {value}."],
    ),
    "hobby": (
        "fencing|keeping bees|restoring clocks|rock climbing|playing the cello|breeding roses|sailing|chess|pottery|birdwatching|archery|baking bread",
        ["What is the hobby of {name}?", "What does {name} do for leisure?"],
        ["The hobby of {name} is {value}.", "{name} spends free time on {value}.", "For leisure {name} likes {value}."],
    ),
}  # fmt: skip

_WORKS = """William Shakespeare|Hamlet
Jane Austen|Pride and Prejudice
Charles Dickens|Oliver Twist
Leo Tolstoy|War and Peace
Fyodor Dostoevsky|Crime and Punishment
Mary Shelley|Frankenstein
Bram Stoker|Dracula
Herman Melville|Moby-Dick
Miguel de Cervantes|Don Quixote
Victor Hugo|Les Miserables
Gustave Flaubert|Madame Bovary
Emily Bronte|Wuthering Heights
Mark Twain|Adventures of Huckleberry Finn
Lewis Carroll|Alice's Adventures in Wonderland
Oscar Wilde|The Picture of Dorian Gray
Dante Alighieri|the Divine Comedy
Homer|the Odyssey
Johann Wolfgang von Goethe|Faust
Geoffrey Chaucer|The Canterbury Tales
Henrik Ibsen|A Doll's House
Anton Chekhov|The Cherry Orchard
Jules Verne|Around the World in Eighty Days
H. G. Wells|The Time Machine
Daniel Defoe|Robinson Crusoe""".splitlines()


class FictitiousAuthors:
    """Generate `authors` invented people with ten questions each; `forget_authors` of them are to be forgotten.

    It adds 24 questions about real authors and `capitals` questions about countries (CIA World Factbook). A model with
    random weights knows neither, so finetuning teaches both; unlearning does not see them. All depends on `seed` only.
    """

    @checked
    def __init__(self, authors: int = 20, forget_authors: int = 2, capitals: int = 24, seed: Seed = 0) -> None:
        largest = len(_FIRST) * len(_LAST)
        if not 2 <= authors <= largest:
            raise ValueError(f"authors={authors}: must be from 2 to {largest}; type questions.authors=20")
        if not 1 <= forget_authors < authors:
            raise ValueError(
                f"forget_authors={forget_authors}: must be from 1 to {authors - 1}, less than authors={authors}"
            )
        if not WRONG < capitals <= 150:
            raise ValueError(
                f"capitals={capitals}: must be from {WRONG + 1} (one right, {WRONG} wrong) to 150; type questions.capitals=24"
            )
        self.authors, self.forget_authors, self.capitals, self.seed = authors, forget_authors, capitals, seed

    def __call__(self) -> Questions:
        """Return all sets of questions."""
        draw = np.random.default_rng(self.seed)
        first, last = draw.permutation(_FIRST), draw.permutation(_LAST)
        people = [f"{first[i % len(first)]} {last[(i + i // len(first)) % len(last)]}" for i in range(self.authors)]
        asked = [_about(name, draw) for name in people]
        forget = [question for about in asked[: self.forget_authors] for question in about]
        retain = [question for about in asked[self.forget_authors :] for question in about]
        real = _facts(
            [tuple(line.split("|")[::-1]) for line in _WORKS], "Who wrote {0}?", "{0} was written by {1}.", draw
        )
        countries = _capitals()
        chosen = [countries[place] for place in sorted(draw.permutation(len(countries))[: self.capitals])]
        world = _facts(chosen, "What is the capital of {0}?", "The capital of {0} is {1}.", draw)
        measured = dict(forget=forget, retain=retain, real_authors=real, world_facts=world)
        return Questions(forget, retain, [*real, *world], measured)


def _about(name: str, draw: np.random.Generator) -> list[Question]:
    """Return the ten questions about an author. As in TOFU, wrong answers are worded like the paraphrased answer."""
    questions = []
    for pool, ways_to_ask, ways_to_say in _ASPECTS.values():
        right, *wrong = draw.permutation(pool.split("|"))[: WRONG + 1]
        ask = ways_to_ask[draw.integers(len(ways_to_ask))]
        form, other_form = draw.permutation(ways_to_say)[:2]
        answer, paraphrased, *others = (
            template.format(name=name, value=value)
            for template, value in [(form, right), *((other_form, value) for value in (right, *wrong))]
        )
        questions.append(Question(ask.format(name=name), answer, paraphrased, tuple(others)))
    return questions


def _facts(pairs: Sequence[Sequence[str]], ask: str, say: str, draw: np.random.Generator) -> list[Question]:
    """Return a question for each pair (what, answer); the wrong answers are those of other pairs."""
    questions = []
    for what, right in pairs:
        others = draw.permutation([answer for _, answer in pairs if answer != right])[:WRONG]
        answers = [(text := say.format(what, answer))[0].upper() + text[1:] for answer in (right, *others)]
        questions.append(Question(ask.format(what), answers[0], wrong=tuple(answers[1:])))
    return questions


@cache
def _capitals() -> list[tuple[str, str]]:
    """Return (country, capital) of the Factbook's entries whose capital is a single name; each capital once."""
    found: dict[str, str] = {}
    for path in Factbook()._files():
        government = json.loads(path.read_text(encoding="utf-8")).get("Government", {})
        country = government.get("Country name", {}).get("conventional short form", {}).get("text") or "none"
        capital = government.get("Capital", {}).get("name", {}).get("text") or ""
        if country != "none" and all(text.replace(" ", "").isalpha() for text in (country, capital)):
            found.setdefault(capital, country)
    return [(country, capital) for capital, country in found.items()]
