"""Write multiple-choice tasks of lm-evaluation-harness from the CIA World Factbook. Needs no hub.

python experiments/benchmarks_tasks.py FOLDER    writes capitals, continents and nationalities: .yaml and .json
"""

import json
import random
import re
import sys
from pathlib import Path

from goldfish.data.corpus import Factbook

# name -> the fact's place in a country's article, and the prompt
TASKS = {
    "capitals": (("Government", "Capital", "name"), "The capital of {country} is"),
    "continents": (("Geography", "Map references"), "On a map of the world, {country} is in"),
    "nationalities": (("People and Society", "Nationality", "adjective"), "The people of {country} are called"),
}
CHOICES = 4
YAML = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    articles = [json.loads(path.read_text(encoding="utf-8")) for path in Factbook()._files()]
    for name, (place, prompt) in TASKS.items():
        facts = {
            country: fact
            for article in articles
            if (country := fact_of(article, ("Government", "Country name", "conventional short form")))
            and (fact := fact_of(article, place))
        }
        draw, others = random.Random(0), sorted(set(facts.values()))
        rows = []
        for country, fact in sorted(facts.items()):
            choices = draw.sample([other for other in others if other != fact], CHOICES - 1)
            choices.insert(answer := draw.randrange(CHOICES), fact)
            rows.append(dict(prompt=prompt.format(country=country), choices=choices, answer=answer))
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(YAML.format(name=name, data=folder / f"{name}.json"), encoding="utf-8")
        print(f"{name}: {len(rows)} questions, for example {rows[0]}")


def fact_of(node: object, place: tuple[str, ...]) -> str:
    """The fact at a place of an article, without notes; "" if there is none."""
    for key in (*place, "text"):
        node = node.get(key) if isinstance(node, dict) else None
    fact = re.split(r"[;,(<]", node if isinstance(node, str) else "")[0].strip()
    return "" if fact.lower() in ("none", "na") else fact


if __name__ == "__main__":
    main()
