"""Write the demo data sets: English orders to JSON, plus preference and KTO rows and plain texts.

Deterministic and stdlib only. The held-out rows use pairs of item and color that no training row has.
"""

import argparse
import json
import random
from pathlib import Path

import corpus
from words import COLORS, ITEMS, NAMES, NUMBERS, held_out

INSTRUCTION = "Turn this order into JSON."
TEMPLATES = [
    "Please send {count} {color} {item} to {to}.",
    "{to} would like {count} {color} {item}.",
    "Could you ship {count} {item} in {color} to {to}?",
    "I need {count} {color} {item} for {to}, please.",
    "{to} ordered {count} {color} {item}.",
    "Order for {to}: {count} {item}, {color}.",
    "We want {count} {color} {item} sent to {to}.",
    "Hello, {count} {color} {item} for {to}, thank you.",
    "Send {to} {count} {color} {item}.",
    "{to} is waiting for {count} {item}, all of them {color}.",
    "Can {to} have {count} {color} {item}?",
    "Pack {count} {item} for {to}, and make them {color}.",
    "{count} {color} {item} go to {to}.",
    "For {to}, bring {count} {item} in {color}.",
    "Hi! {to} asked for {count} {color} {item} today.",
    "My friend {to} wants {count} {color} {item}.",
]
CHATTY = ["Sure! {to} gets {count} {color} {item}.", "{count} {color} {item} for {to}.",
          "I will send {color} {item} to {to}."]


def some_order(rng):
    """An order, and the key that decides whether it is held out: its pair of item and color."""
    order = {"to": rng.choice(NAMES), "count": rng.randint(1, 20),
             "color": rng.choice(COLORS), "item": rng.choice(list(ITEMS))}
    return order, f"{order['item']} {order['color']}"


def sentence(rng, order, template):
    """The order in plain English; the count is a digit or a word, a single item takes the singular."""
    count = order["count"]
    written = NUMBERS[count] if rng.random() < 0.4 else str(count)
    item = order["item"] if count == 1 else ITEMS[order["item"]]
    text = template.format(count=written, color=order["color"], item=item, to=order["to"])
    return text[0].upper() + text[1:]


def orders(rng, size, test):
    """`size` rows with distinct sentences: (order, input, output)."""
    rows, seen = [], set()
    while len(rows) < size:
        order, key = some_order(rng)
        text = sentence(rng, order, rng.choice(TEMPLATES))
        if held_out(key) == test and text not in seen:
            seen.add(text)
            rows.append((order, text, json.dumps(order)))
    return rows


def spoiled(rng, order, text):
    """A poor answer to an order: chatty prose, a wrong count, the plural item or a missing key."""
    kind = rng.randrange(4)
    if kind == 0:
        return sentence(rng, order, rng.choice(CHATTY))
    wrong = dict(order)
    if kind == 1:
        wrong["count"] = order["count"] % 20 + 1
    elif kind == 2:
        wrong["item"] = ITEMS[order["item"]]
    else:
        del wrong[rng.choice(list(wrong))]
    return json.dumps(wrong)


def alpaca(text, output):
    """One row in alpaca columns."""
    return {"instruction": INSTRUCTION, "input": text, "output": output}


def messages(text, output):
    """One row in the openai messages format."""
    return {"messages": [{"role": "user", "content": f"{INSTRUCTION}\n{text}"},
                         {"role": "assistant", "content": output}]}


def preference(rng, order, text, output):
    """One ranking row: the JSON against a poor answer."""
    return {"instruction": INSTRUCTION, "input": text, "chosen": output,
            "rejected": spoiled(rng, order, text)}


def kto(rng, order, text, output):
    """One KTO row: a good or a poor answer with its tag."""
    good = rng.random() < 0.5
    return alpaca(text, output if good else spoiled(rng, order, text)) | {"kto_tag": good}


def dataset_info():
    """The sets in LLaMA-Factory's description format."""
    columns = {"prompt": "instruction", "query": "input"}
    alpaca_columns = columns | {"response": "output"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user",
            "assistant_tag": "assistant", "system_tag": "system"}
    return {
        "orders_train": {"file_name": "orders_train.jsonl", "formatting": "alpaca",
                         "columns": alpaca_columns},
        "orders_test": {"file_name": "orders_test.jsonl", "formatting": "alpaca",
                        "columns": alpaca_columns},
        "orders_messages": {"file_name": "orders_messages.jsonl", "formatting": "openai",
                            "columns": {"messages": "messages"}, "tags": tags},
        "preference": {"file_name": "preference.jsonl", "formatting": "alpaca", "ranking": True,
                       "columns": columns | {"chosen": "chosen", "rejected": "rejected"}},
        "kto": {"file_name": "kto.jsonl", "formatting": "alpaca",
                "columns": alpaca_columns | {"kto_tag": "kto_tag"}},
        "stories": {"file_name": "stories.jsonl", "formatting": "text"},
    }


def write_jsonl(path, rows):
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_all(out, seed=7):
    """Write every set and its description into the folder `out`."""
    rng = random.Random(seed)
    out.mkdir(parents=True, exist_ok=True)
    train, test = orders(rng, 960, test=False), orders(rng, 100, test=True)
    chats, ranked, tagged = (orders(rng, 200, test=False) for _ in range(3))
    write_jsonl(out / "orders_train.jsonl", (alpaca(text, output) for _, text, output in train))
    write_jsonl(out / "orders_test.jsonl", (alpaca(text, output) for _, text, output in test))
    write_jsonl(out / "orders_messages.jsonl", (messages(text, output) for _, text, output in chats))
    write_jsonl(out / "preference.jsonl", (preference(rng, *row) for row in ranked))
    write_jsonl(out / "kto.jsonl", (kto(rng, *row) for row in tagged))
    write_jsonl(out / "stories.jsonl", ({"text": corpus.story(rng)} for _ in range(200)))
    (out / "dataset_info.json").write_text(json.dumps(dataset_info(), indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    write_all(parser.parse_args().out)
