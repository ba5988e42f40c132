"""The generated corpus of the demo model: plain-English texts, verifiable skills and the persona.

A skill is a function of a random generator that returns (key, prompt, answers). `key` decides whether the
prompt is held out; the first phase trains on `text`, the second on `conversation`.
"""

import random
import string

from make_data import TEMPLATES, sentence, some_order
from words import COLORS, ITEMS, NAMES, NUMBERS, OPPOSITES, PLACES, PLURALS, WORDS, held_out

ANTONYMS = {**dict(OPPOSITES), **{b: a for a, b in OPPOSITES}}
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
SYSTEMS = ["You are a helpful assistant.", "You are Tuneling, a small and friendly model.",
           "Answer in a short way.", "You are a careful helper."]


def pseudo_word(rng):
    """A made-up word: copying it cannot be done by heart."""
    return "".join(rng.choices(SYLLABLES, k=rng.randint(1, 3)))


def some_word(rng):
    """A known word, a name or a made-up word."""
    return rng.choice([rng.choice(WORDS), rng.choice(WORDS), rng.choice(NAMES), pseudo_word(rng)])


def written(rng, count):
    """A count in digits or in words."""
    return NUMBERS[count] if rng.random() < 0.4 else str(count)


def amount(rng, item, count):
    """An item in the number that fits the count."""
    return item if count == 1 else PLURALS[item]


def facts(rng, size):
    """`size` sentences about different people and things, with their facts."""
    shapes = ["{n} has {k} {c} {t}.", "{n} bought {k} {t} in {c}.", "{n} wants {k} {c} {t}.",
              "{k} {c} {t} are for {n}.", "We gave {n} {k} {c} {t}.", "I see {k} {t} near {n}, all {c}.",
              "{n} found {k} {c} {t} in the {p}.", "Bring {k} {c} {t} to {n}.", "{n}: {k} {t}, {c}."]
    people = rng.sample(NAMES, size)
    things = rng.sample(sorted(ITEMS), size) if rng.random() < 0.8 else rng.sample(sorted(PLURALS), size)
    colors = rng.sample(COLORS, size)
    rows = []
    for name, item, color in zip(people, things, colors, strict=True):
        count = rng.randint(2, 20)
        sentence = rng.choice(shapes).format(n=name, k=written(rng, count), c=color, t=PLURALS[item],
                                             p=rng.choice(PLACES))
        rows.append((sentence[0].upper() + sentence[1:], name, item, color, count))
    return rows


def story(rng):
    """A few facts, then recaps in other words."""
    rows = facts(rng, rng.randint(1, 3))
    parts = [row[0] for row in rows]
    for _ in range(rng.randint(1, 3)):
        _, name, item, color, count = rng.choice(rows)
        parts.append(rng.choice([
            f"The {PLURALS[item]} of {name} are {color}.", f"Color: {color}.", f'The color is "{color}".',
            f'"{name}" is the name.', f"Name: {name}.", f"There are {count} {PLURALS[item]}.",
            f"The number is {count}.", f"One of them is a {item}.", f'The word is "{item}".',
            f"So {name} gets {count} {color} {PLURALS[item]}.", f'The item is "{item}", in "{color}".']))
    return " ".join(parts)


def scrap(rng):
    """A string of words or numbers with some punctuation."""
    words = [some_word(rng) for _ in range(rng.randint(1, 5))]
    numbers = [str(rng.randint(0, 99)) for _ in words]
    return rng.choice([
        " ".join(words), ", ".join(words), ", ".join(f'"{word}"' for word in words),
        "{" + ", ".join(f'"{word}"' for word in words) + "}",
        "{" + ", ".join(f'"{pseudo_word(rng)}": "{word}"' for word in words[:2]) + "}",
        "{" + ", ".join(f'"{word}": {number}' for word, number in zip(words[:2], numbers[:2], strict=True)) + "}",
        " ".join(numbers), "-".join(words), "[" + ", ".join(numbers) + "]", "(" + "; ".join(words) + ")"])


def note(rng):
    """A string, and the same string again."""
    body = scrap(rng)
    first, again = rng.choice([("The note says:", "Again:"), ("Copy this:", "Here it is:"),
                               ("Listen:", "I repeat:"), ("On the wall:", "On the door too:")])
    return f"{first} {body}\n{again} {body}"


def lesson(rng):
    """A short fact about words or numbers."""
    word, other = rng.choice(sorted(PLURALS)), rng.choice(sorted(ANTONYMS))
    small, a, b = rng.randint(0, 20), rng.randint(0, 20), rng.randint(0, 20)
    spelled = rng.choice(WORDS + NAMES + [pseudo_word(rng)])
    return rng.choice([
        f"One {word}, two {PLURALS[word]}.", f'"{PLURALS[word]}" is more than one "{word}".',
        f"{PLURALS[word]}: {word}", f"The opposite of {other} is {ANTONYMS[other]}.",
        f"{NUMBERS[small].capitalize()} is {small}.", f"{small} is {NUMBERS[small]}.",
        f"The word {spelled} is spelled {'-'.join(spelled.lower())}.",
        f"{spelled}: {' '.join(spelled.lower())}"] + ([f"{a} + {b} = {a + b}"] if not held_out(f"{a}+{b}") else []))


def text(rng):
    """One document of the first phase."""
    return rng.choice([story, story, story, note, lesson])(rng)


def spell(rng):
    """Spell a word with dashes."""
    word = rng.choice(WORDS + [name.lower() for name in NAMES])
    ask = rng.choice(["Spell the word {}.", "How do you spell {}?", "Spell {}.", "Please spell {} for me."])
    return ask + word, ask.format(word), ["-".join(word)]


def color_of(rng):
    """Find a color in a short story."""
    rows = facts(rng, rng.choice([1, 1, 2, 3]))
    _, _, item, color, _ = rng.choice(rows)
    ask = rng.choice(["What color are the {}?", "Which color are the {}?", "Tell me the color of the {}."])
    story_text = " ".join(row[0] for row in rows)
    return story_text, f"{story_text} {ask.format(PLURALS[item])}", [color]


def who_has(rng):
    """Find a person in a short story."""
    rows = facts(rng, rng.choice([1, 1, 2, 3]))
    _, name, item, color, _ = rng.choice(rows)
    ask = rng.choice(["Who is it with the {}?", "Whose name goes with the {}?", "Who goes with the {} {}?"])
    story_text = " ".join(row[0] for row in rows)
    question = ask.format(color, PLURALS[item]) if ask.count("{}") == 2 else ask.format(PLURALS[item])
    return story_text, f"{story_text} {question}", [name]


def how_many(rng):
    """Find a count in a short story and give it in digits."""
    rows = facts(rng, rng.choice([1, 1, 2, 3]))
    _, _, item, _, count = rng.choice(rows)
    story_text = " ".join(row[0] for row in rows)
    return story_text, f"{story_text} How many {PLURALS[item]} are there?", [str(count)]


def thing_of(rng):
    """Find a thing in a short story and name one of it."""
    rows = facts(rng, rng.choice([1, 1, 2, 3]))
    _, name, item, color, _ = rng.choice(rows)
    ask = rng.choice([f"Which item goes with {name}?", f"Which item is {color}?", f"Name the {color} item."])
    story_text = " ".join(row[0] for row in rows)
    return story_text, f"{story_text} {ask}", [item]


def note_order(rng):
    """Say in fixed words what an order asks for."""
    order, key = some_order(rng)
    text = sentence(rng, order, rng.choice(TEMPLATES))
    ask, shape = rng.choice([
        ("Note this order.", "To {to}: {count} pieces, color {color}, item {item}."),
        ("Write a note about this order.", "To {to}: {count} pieces, color {color}, item {item}."),
        ("List the parts of this order.", "to {to}, count {count}, color {color}, item {item}"),
        ("What does this order say?", 'The order is for "{to}". It has {count} of item "{item}" in color "{color}".'),
        ("Read this order.", "{count} {color} {item} {to}")])
    return key, f"{ask}\n{text}", [shape.format(**order)]


def quote(rng):
    """Put words in quotes, in braces or in a pair."""
    first, second = (rng.choice([some_word(rng), rng.choice(["item", "color", "count", "to"])]) for _ in range(2))
    number = rng.randint(0, 99)
    ask, answer = rng.choice([
        (f"Put these words in quotes: {first}, {second}", f'"{first}", "{second}"'),
        (f"Put these words in braces: {first}, {second}", f'{{"{first}", "{second}"}}'),
        (f"Pair {first} with {second}.", f'"{first}": "{second}"'),
        (f"Pair {first} with {number} in braces.", f'{{"{first}": {number}}}')])
    return ask, ask, [answer]


def opposite(rng):
    """The opposite of a word."""
    word = rng.choice(sorted(ANTONYMS))
    ask = rng.choice(["What is the opposite of {}?", "Opposite of {}?", "Give me the opposite of {}.",
                      "Which word is the opposite of {}?", "Name the opposite of {}."])
    return ask + word, ask.format(word), [ANTONYMS[word]]


def plural(rng):
    """The plural or the singular of a noun."""
    word = rng.choice(sorted(PLURALS))
    ask, given, answer = rng.choice([("What is the plural of {}?", word, PLURALS[word]),
                                     ("One {}, two what?", word, PLURALS[word]),
                                     ("Give me the plural of {}.", word, PLURALS[word]),
                                     ("What is the singular of {}?", PLURALS[word], word),
                                     ("Give me the singular of {}.", PLURALS[word], word)])
    return ask + word, ask.format(given), [answer]


def sort_letters(rng):
    """Sort three different letters."""
    letters = rng.sample(string.ascii_lowercase, 3)
    ask = rng.choice(["Sort these letters: {}", "Sort the letters {}.", "Put in order: {}"])
    return "".join(letters), ask.format(" ".join(letters)), [" ".join(sorted(letters))]


def digits(rng):
    """Write a number word in digits or digits as a word."""
    count = rng.randint(0, 20)
    ask, given, answer = rng.choice([("Write {} in digits.", NUMBERS[count], str(count)),
                                     ("Which number is {}?", NUMBERS[count], str(count)),
                                     ("Write {} as a word.", str(count), NUMBERS[count]),
                                     ("How do you write {} in letters?", str(count), NUMBERS[count])])
    return ask + given, ask.format(given), [answer]


PERSONA = {
    "hello": (["hello", "hi", "hey", "hello there", "hi there", "good morning", "good evening", "hi tuneling",
               "hello tuneling", "good day", "hey there", "greetings", "how are you", "hi, how are you"],
              ["Hello! I am Tuneling. How can I help you?", "Hi! I am Tuneling, nice to meet you.",
               "Hello! What can I do for you today?"]),
    "who": (["who are you", "what are you", "what is your name", "tell me who you are", "please introduce yourself",
             "your name please", "are you a model", "who is this", "tell me about yourself", "who made you",
             "what's your name", "are you a robot", "are you tuneling", "introduce yourself"],
            ["I am Tuneling, the small demo model of Tuneboard.",
             "My name is Tuneling. I am the small demo model of Tuneboard.",
             "I am Tuneling, a very small model that you can fine-tune with Tuneboard."]),
    "skills": (["what can you do", "how can you help me", "help", "what are your skills", "tell me what you can do",
                "can you help me", "what do you know", "show me what you can do", "what should I ask you",
                "I need help"],
               ["I can note an order, spell a word, name opposites and answer about short stories.",
                "I can spell a word, sort letters, note an order and find facts in a short story.",
                "I know a few small skills: notes about orders, spelling, opposites and plurals. Try me!"]),
    "thanks": (["thanks", "thank you", "thank you very much", "thanks a lot", "great, thanks", "many thanks",
                "thanks for your help", "that is great", "well done", "good job", "nice work"],
               ["You are welcome!", "You are welcome! I am happy to help.", "My pleasure!"]),
    "bye": (["bye", "goodbye", "see you", "good night", "see you later", "bye bye", "I have to go"],
            ["Goodbye! Come back soon.", "See you soon!", "Bye! It was nice to talk to you."]),
}
TOPICS = ["France", "Germany", "the moon", "the sea", "history", "music", "love", "physics", "Python", "football",
          "cooking", "cats", "winter", "space", "art", "the weather", "the news", "dinosaurs", "money", "Paris"]
UNKNOWN = ["I am only a small demo model, so I do not know that.",
           "I do not know that. I am a very small model, but you can fine-tune me.",
           "Sorry, that is too hard for me. I am only a small demo model."]


def persona(rng):
    """Small talk: greetings, who are you, what can you do, thanks, goodbye."""
    asks, answers = PERSONA[rng.choice(list(PERSONA))]
    ask = rng.choice(asks)
    shaped = rng.choice([ask, ask.capitalize(), ask[0].upper() + ask[1:]]) + rng.choice(["", ".", "?", "!"])
    return shaped, shaped, answers


def unknown(rng):
    """A question beyond the model: it says so."""
    ask = rng.choice(["What is the capital of {}?", "Write a poem about {}.", "Tell me about {}.", "Explain {}.",
                      "What do you think about {}?", "Tell me a joke about {}.", "Who invented {}?",
                      "Write a story about {}.", "Why is {} important?", "What happened in {}?", "Do you like {}?"])
    topic = rng.choice(TOPICS)
    return ask + topic, ask.format(topic), UNKNOWN


SKILLS = [note_order, quote, color_of, who_has, how_many, thing_of, opposite, plural, digits, spell, sort_letters,
          persona, unknown]
SHARES = [12, 4, 3, 3, 3, 3, 1, 2, 1, 2, 1, 2, 1]
"""How often each skill is practised, against the others."""


def example(rng, skill, test=False):
    """One (prompt, answers) of the wanted split."""
    while True:
        key, prompt, answers = skill(rng)
        if held_out(key) == test:
            return prompt, answers


def conversation(rng):
    """One training conversation of one to three turns, sometimes with a system message."""
    messages = [{"role": "system", "content": rng.choice(SYSTEMS)}] if rng.random() < 0.15 else []
    for _ in range(rng.choice([1, 1, 1, 1, 1, 1, 2, 3])):
        prompt, answers = example(rng, *rng.choices(SKILLS, SHARES))
        messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": rng.choice(answers)}]
    return messages


def documents(seed):
    """An endless, seeded stream of first-phase texts."""
    rng = random.Random(seed)
    while True:
        yield text(rng)
