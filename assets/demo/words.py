"""The words that the demo data and the demo model's corpus share, and what is held out of both."""

import zlib

ITEMS = {
    "mug": "mugs", "hat": "hats", "lamp": "lamps", "ball": "balls", "book": "books",
    "chair": "chairs", "pen": "pens", "cup": "cups", "plate": "plates", "box": "boxes",
    "bag": "bags", "coat": "coats", "shoe": "shoes", "sock": "socks", "scarf": "scarves",
    "kite": "kites", "drum": "drums", "spoon": "spoons", "fork": "forks", "knife": "knives",
    "brush": "brushes", "basket": "baskets", "bottle": "bottles", "clock": "clocks",
    "mirror": "mirrors", "towel": "towels", "blanket": "blankets", "pillow": "pillows",
    "candle": "candles", "vase": "vases", "bell": "bells", "rope": "ropes",
    "bucket": "buckets", "ribbon": "ribbons", "button": "buttons", "bench": "benches",
    "watch": "watches", "dish": "dishes", "shelf": "shelves", "tent": "tents",
}
COLORS = ["red", "blue", "green", "yellow", "black", "white", "pink", "brown", "purple",
          "orange", "gray", "gold"]
NAMES = ["Anna", "Tom", "Ben", "Mia", "Leo", "Eva", "Sam", "Lily", "Max", "Nora", "Paul", "Rosa",
         "Ivan", "Emma", "Jack", "Kate", "Omar", "Lucy", "Hugo", "Nina", "Adam", "Sara", "Oscar",
         "Vera", "Felix", "Clara", "Peter", "Maria", "David", "Helen", "Karl", "Alice", "Frank",
         "Grace", "Henry", "Irene", "Louis", "Julia", "Victor", "Diana"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
           "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen",
           "eighteen", "nineteen", "twenty"]
OPPOSITES = [("hot", "cold"), ("big", "small"), ("up", "down"), ("day", "night"), ("fast", "slow"),
             ("old", "young"), ("wet", "dry"), ("open", "closed"), ("full", "empty"),
             ("happy", "sad"), ("light", "dark"), ("early", "late"), ("loud", "quiet"),
             ("rich", "poor"), ("strong", "weak"), ("clean", "dirty"), ("tall", "short"),
             ("near", "far"), ("left", "right"), ("good", "bad"), ("soft", "hard"), ("in", "out"),
             ("high", "low"), ("first", "last"), ("win", "lose"), ("push", "pull")]
NOUNS = {
    "cat": "cats", "dog": "dogs", "bird": "birds", "horse": "horses", "fox": "foxes",
    "tree": "trees", "house": "houses", "car": "cars", "boat": "boats", "river": "rivers",
    "apple": "apples", "egg": "eggs", "cake": "cakes", "flower": "flowers", "star": "stars",
    "door": "doors", "window": "windows", "garden": "gardens", "baby": "babies", "city": "cities",
    "story": "stories", "lady": "ladies", "leaf": "leaves", "wolf": "wolves", "road": "roads",
    "hill": "hills", "shop": "shops", "friend": "friends", "letter": "letters", "song": "songs",
}
PLURALS = ITEMS | NOUNS
PLACES = ["table", "floor", "kitchen", "garden", "hall", "shop", "school", "park", "room", "roof"]
WORDS = sorted({*PLURALS, *COLORS, *PLACES, *(w for pair in OPPOSITES for w in pair),
                "item", "color", "count", "word", "name", "order", "number", "send", "rain", "snow",
                "wind", "sun", "moon", "bread", "milk", "water", "paper", "music", "morning"})


def held_out(key):
    """Whether what a key stands for belongs to the held-out tenth, never trained on."""
    return zlib.crc32(key.encode()) % 10 == 3
