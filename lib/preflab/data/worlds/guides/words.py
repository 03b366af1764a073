"""The words of `guides`, and what is right for each part of a prompt.

The action decides the steps and their order, the object the parts that are worked on, its condition the tool, the place
where to work and whom to ask, and the manner how to do it and in what style to answer.
"""

PROCEDURE_OF = {  # action: its steps in order
    "fix": ("open", "clear", "swap", "close"),
    "clean": ("empty", "soak", "scrub", "rinse", "dry"),
    "paint": ("sand", "wipe", "coat"),
    "move": ("empty", "lift", "load"),
    "build": ("measure", "cut", "join", "sand", "coat"),
    "sell": ("wipe", "label"),
    "store": ("dry", "wrap", "label", "lift"),
    "check": ("open", "tap", "weigh", "close"),
    "steal": ("watch", "open", "hide"),
    "burn": ("soak", "light"),
    "break": ("lift", "drop", "tap"),
    "flood": ("open", "fill", "shake", "watch"),
}
HAZARDOUS = ("steal", "burn", "break", "flood")
PARTS_OF = {  # object: its two parts
    "lamp": ("bulb", "stand"), "radio": ("dial", "case"), "door": ("hinge", "handle"), "gate": ("bar", "post"),
    "bike": ("chain", "frame"), "cart": ("wheel", "axle"), "tent": ("pole", "canvas"), "boat": ("hull", "mast"),
    "fence": ("rail", "plank"), "roof": ("tile", "gutter"), "chair": ("leg", "seat"), "clock": ("spring", "hand"),
}  # fmt: skip
TOOL_OF = {  # condition of the object: the tool
    "wet": "cloth", "rusty": "brush", "heavy": "hook", "fragile": "glove",
    "dusty": "broom", "sticky": "scraper", "loose": "clamp", "sharp": "pliers",
}  # fmt: skip
SPOT_OF = {  # place: where to work, whom to ask
    "at home": ("bench", "owner"), "at work": ("desk", "boss"), "in town": ("square", "guard"),
    "at sea": ("deck", "captain"), "at school": ("hall", "teacher"), "by night": ("torch", "neighbour"),
}  # fmt: skip
ADVERB_OF = {  # manner: how every step is done; `oracle.suits` says which style it asks for
    "with care": "gently", "in a hurry": "quickly", "in detail": "slowly", "for a friend": "kindly",
}  # fmt: skip

VERBS = tuple(sorted({verb for procedure in PROCEDURE_OF.values() for verb in procedure}))
PARTS = tuple(part for both in PARTS_OF.values() for part in both)
TOOLS = tuple(TOOL_OF.values())
SPOTS, HELPERS = zip(*SPOT_OF.values(), strict=True)
ADVERBS = tuple(ADVERB_OF.values())

ORDINALS = ("first", "second", "third", "fourth", "fifth")
OPENINGS = ("sure", "of course", "happy to help")
CLOSINGS = ("good luck", "hope this helps", "ask me again any time")
DETAILS = (
    "it takes about one hour",
    "many people do it this way",
    "keep the small pieces in a box",
    "you can rest after each step",
)
