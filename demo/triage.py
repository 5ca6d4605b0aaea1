"""``triage``: a customer's message to ``{"queue": ..., "urgent": ...}``, by two plain rules.

* The queue is what the problem is about. Products, greetings and moods say nothing about it.
* Urgent is true where there is danger (smoke, a stranger in the account), or where the customer
  names a need within a day. Anger alone is not urgent; patience never is.
"""

from __future__ import annotations

import json
import random

from demo.task import DemoDomain, Draw, Pool, Split

QUEUES = ("billing", "delivery", "repair", "account", "returns")

INSTRUCTION = (
    'Sort this customer message. Reply with JSON: "queue" is one of '
    + ", ".join(QUEUES)
    + '; "urgent" is true or false.'
)


PRODUCTS = Pool(
    train=(
        "toaster", "kettle", "desk lamp", "office chair", "phone case", "coffee machine",
        "vacuum cleaner", "camping tent", "winter jacket", "bike helmet", "hair dryer", "printer",
        "rice cooker", "garden hose", "bookshelf", "headset", "electric blanket", "drill",
    ),
    test=(
        "blender", "microwave", "rain coat", "suitcase", "baby monitor", "sewing machine",
        "fan heater", "guitar amp",
    ),
)  # fmt: skip

# Problems name their queue's subject in some way; {p} is the product.
PROBLEMS: dict[str, Pool] = {
    "billing": Pool(
        train=(
            "I was charged twice for the {p}.",
            "The invoice for my {p} shows the wrong amount.",
            "My card was billed for a {p} I never ordered.",
            "The discount code was not taken off the price of the {p}.",
            "I need a proper invoice with VAT for the {p}.",
            "You charged me a fee on top of the price of the {p}.",
            "The payment for the {p} failed but the money left my bank account.",
            "Why is the {p} dearer on my bill than in the shop?",
        ),
        test=(
            "There are two payments for one {p} on my card.",
            "The bill for the {p} has the wrong company name on it.",
            "I paid for the {p} with a voucher and the full price was charged.",
        ),
    ),
    "delivery": Pool(
        train=(
            "My {p} has not arrived yet.",
            "The tracking page says the {p} was delivered, but nobody came.",
            "The courier left the parcel with the {p} out in the rain.",
            "I want the {p} sent to another address.",
            "The {p} has been stuck at the depot for a week.",
            "When will the {p} be shipped?",
            "The driver took the {p} to the wrong house.",
            "The tracking number for the {p} does not work.",
        ),
        test=(
            "The parcel with my {p} seems to be lost on the way.",
            "The courier never rang, and the {p} went back to the depot.",
            "Is the {p} shipped already? It should have arrived by now.",
        ),
    ),
    "repair": Pool(
        train=(
            "The {p} stopped working after two days.",
            "A part of the {p} broke off.",
            "The {p} makes a loud noise when I use it.",
            "My {p} no longer does what it should.",
            "How do I get the {p} fixed under warranty?",
            "The {p} is faulty and needs a spare part.",
            "Where can I have my {p} repaired?",
            "The {p} worked at first and is now broken.",
        ),
        test=(
            "My {p} is broken, can someone fix it?",
            "The {p} has a fault and does not work any more.",
            "I need a spare part for the {p}.",
        ),
    ),
    "account": Pool(
        train=(
            "I cannot log in to see my order of the {p}.",
            "The password reset mail never comes, and my {p} order is in there.",
            "Please change the e-mail address in my profile, I only wanted to review the {p}.",
            "Delete my account, I will not buy another {p}.",
            "My login was locked while I looked at the {p}.",
            "How do I change my user name after ordering the {p}?",
            "The app signs me out whenever I open the page of the {p}.",
            "I have two accounts since I bought the {p} and want one.",
        ),
        test=(
            "The site does not take my password when I want to order the {p}.",
            "Please close my account, the {p} was my last order.",
            "I cannot sign in since I bought the {p}.",
        ),
    ),
    "returns": Pool(
        train=(
            "I want to send the {p} back.",
            "How do I return the {p}? It is too big.",
            "Please send me a return label for the {p}.",
            "I changed my mind about the {p} and want my money back.",
            "You sent the {p} in the wrong colour, I want to exchange it.",
            "I returned the {p} and still wait for the refund.",
            "Can I swap the {p} for another model?",
            "The {p} does not suit me, how long can I return it?",
        ),
        test=(
            "The {p} was a gift and I would like to exchange it.",
            "I sent the {p} back, where is my refund?",
            "What do I have to do to return the {p}?",
        ),
    ),
}

# Danger is urgent whatever else is said.
DANGERS: dict[str, Pool] = {
    "repair": Pool(
        train=(
            "Smoke comes out of the {p}.",
            "The {p} gave me an electric shock.",
            "Sparks fly from the {p} when I touch it.",
        ),
        test=("There is smoke and a bad smell coming from the {p}.",),
    ),
    "account": Pool(
        train=(
            "Someone broke into my account and ordered a {p}.",
            "A stranger changed my password and bought a {p}.",
        ),
        test=("Somebody hacked my account and ordered a {p} with it.",),
    ),
    "billing": Pool(
        train=(
            "A thief is using my card on your site right now to buy a {p}.",
            "My stolen card was just charged for a {p}.",
        ),
        test=("A thief paid for a {p} with my stolen card.",),
    ),
}

HURRIES = Pool(
    train=(
        "I need this solved today.",
        "It has to be done by tomorrow morning.",
        "I leave in two hours, so please answer now.",
        "This cannot wait, our event is tonight.",
        "Please call me back within the hour.",
        "I need an answer before noon today.",
        "We open tomorrow and cannot do without it.",
        "Please act at once.",
    ),
    test=(
        "I must have an answer today.",
        "Tomorrow morning is too late.",
        "The party is tonight, so please answer at once.",
    ),
)

CALM = Pool(
    train=(
        "There is no hurry.",
        "Whenever you have time is fine.",
        "Next week is early enough.",
        "I am very disappointed.",
        "This really makes me angry!",
        "I expected better from you.",
        "Otherwise I like your shop.",
        "Your service used to be good.",
        "Thanks for your help.",
        "I can wait a few days.",
    ),
    test=(
        "No need to rush.",
        "I am quite annoyed about it!",
        "Many thanks for looking into it.",
        "Take your time.",
    ),
)

GREETINGS = Pool(
    train=("Hello,", "Hi there,", "Good morning,", "Dear team,", "Hey,", ""),
    test=("Hi,", "Good evening,", "Dear all,", ""),
)


def draw(rng: random.Random, split: Split) -> Draw:
    """Draw one message: half of them urgent, a third of those by danger.

    A danger stands alone or with a call to hurry: "smoke ... there is no hurry" is not something
    that people write.
    """
    urgent = rng.random() < 0.5
    danger = urgent and rng.random() < 1 / 3
    queue = rng.choice(tuple(DANGERS) if danger else QUEUES)
    # Test mixes in half of train's problem wordings: with new products, greetings and endings they
    # are new prompts, and the other half asks for more than that.
    wording: Split = "train" if split == "train" or rng.random() < 0.5 else "test"
    problem = (DANGERS if danger else PROBLEMS)[queue].pick(rng, wording)
    if danger:
        ending = HURRIES.pick(rng, split) if rng.random() < 0.5 else ""
    elif urgent:
        ending = HURRIES.pick(rng, split)
    else:
        ending = CALM.pick(rng, split) if rng.random() < 0.7 else ""
    parts = [
        GREETINGS.pick(rng, split),
        problem.format(p=PRODUCTS.pick(rng, split)),
        ending,
    ]
    message = " ".join(part for part in parts if part)
    if rng.random() < 0.25:  # as people type
        message = message.lower().rstrip(".")
    answer = json.dumps({"queue": queue, "urgent": urgent})
    return Draw(
        message, answer, f"{queue}, {'danger' if danger else 'hurry' if urgent else 'calm'}"
    )


TRIAGE = DemoDomain(name="triage", instruction=INSTRUCTION, scorer="exact", draw=draw)
