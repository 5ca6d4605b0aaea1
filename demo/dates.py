"""``dates``: a date, a time or a duration in a message, to its ISO 8601 value.

Every message holds exactly one value, and it can be read in one way only: numeric dates have a day
past 12 (or the year first), times say which half of the day they mean.
"""

from __future__ import annotations

import calendar
import random

from demo.task import DemoDomain, Draw, Pool, Split

INSTRUCTION = "Give the date, time or duration in this message in ISO format."

MONTHS = calendar.month_name[1:]

_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
]  # fmt: skip
_TENS = {20: "twenty", 30: "thirty", 40: "forty", 50: "fifty"}
_ORDINALS = [
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth",
    "eighteenth", "nineteenth", "twentieth",
]  # fmt: skip


ON_A_DAY = Pool(
    train=(
        "see you on {} for the dentist",
        "Our wedding is on {}, please keep it free.",
        "the lease ends on {}",
        "My passport expires on {}.",
        "She was born on {} in a small town.",
        "Can we move the meeting to {}?",
        "The parcel was posted on {}.",
        "I start my new job on {}!",
        "Rent is due on {}, don't forget",
        "The concert was put off until {}.",
        "We fly home on {}, late in the evening",
        "The invoice dated {} is still open.",
        "Please book two rooms from {}.",
        "the plumber comes on {}",
        "The exam takes place on {} in the main hall.",
        "Their contract was signed on {}.",
        "He moved out on {} and left the key.",
        "the warranty runs until {}",
    ),
    test=(
        "Grandma's birthday party is on {}.",
        "The library wants its books back by {}",
        "I saw the doctor on {} about my knee.",
        "Schools close on {} for the holidays.",
        "hand in the report by {} please",
        "Voting opens on {}, bring your card.",
        "The last train on this line ran on {}.",
        "We picked up the car on {}.",
    ),
)

AT_A_TIME = Pool(
    train=(
        "The train leaves at {}.",
        "dinner is at {}, bring wine",
        "Can you call me at {}?",
        "The shop opens at {} tomorrow.",
        "my shift starts at {}",
        "Let's meet at {} by the fountain.",
        "The film begins at {} sharp.",
        "I set the alarm for {}.",
        "The baby woke up at {} again",
        "Pick up the kids at {}, please.",
        "The match kicks off at {}.",
        "they locked the gate at {}",
        "Breakfast is served from {}.",
        "The power went out at {}.",
    ),
    test=(
        "Our plane takes off at {}.",
        "yoga is at {} this week",
        "The bakery sells out by {}.",
        "Please be at the office at {}.",
        "The ferry arrives at {}, rain or shine",
        "I usually walk the dog at {}.",
    ),
)

FOR_A_WHILE = Pool(
    train=(
        "The drive took {}.",
        "Let the dough rest for {}.",
        "the meeting lasted {}",
        "I waited {} for the bus.",
        "The film runs for {}.",
        "Charging takes {} in all.",
        "We walked for {} along the river.",
        "The repair will need {}.",
        "bake it for {} and let it cool",
        "He slept for {} after the trip.",
        "The battery lasts {}.",
        "Parking is free for {}.",
        "the call went on for {}",
        "Leave the paint to dry for {}.",
    ),
    test=(
        "The flight is {} long.",
        "simmer the soup for {}",
        "The outage went on for {}.",
        "We queued for {} at the museum.",
        "Her speech lasted {}.",
        "My commute takes {} each way",
    ),
)


def number_word(n: int) -> str:
    """Return the English word of 0..59, tens and ones joined by a hyphen."""
    if n < 20:
        return _ONES[n]
    tens, ones = n - n % 10, n % 10
    return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")


def ordinal_word(n: int) -> str:
    """Return the English ordinal word of 1..31."""
    if n <= 20:
        return _ORDINALS[n - 1]
    return "thirtieth" if n == 30 else f"{_TENS[n - n % 10]}-{_ORDINALS[n % 10 - 1]}"


def ordinal_digits(n: int) -> str:
    """Return 1st, 2nd, 3rd, 4th, 11th, 21st, ..."""
    ending = "th" if 10 < n % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def draw_date(rng: random.Random, split: Split) -> Draw:
    """Draw a calendar date from 1960 to 2039."""
    year, month = rng.randint(1960, 2039), rng.randint(1, 12)
    day = rng.randint(1, calendar.monthrange(year, month)[1])
    name, short = MONTHS[month - 1], MONTHS[month - 1][:3]
    phrasings = [
        ("ordinal word", f"the {ordinal_word(day)} of {name} {year}"),
        ("ordinal word", f"{name} the {ordinal_word(day)}, {year}"),
        ("ordinal", f"the {ordinal_digits(day)} of {name} {year}"),
        ("ordinal", f"{name} {ordinal_digits(day)}, {year}"),
        ("day month", f"{day} {name} {year}"),
        ("month day", f"{name} {day}, {year}"),
        ("short month", f"{day} {short} {year}"),
        ("short month", f"{short} {day}, {year}"),
        ("year first", f"{year}/{month:02d}/{day:02d}"),
    ]
    if day > 12:  # else day and month could be taken for each other
        phrasings += [
            ("numeric", f"{day}/{month}/{year}"),
            ("numeric", f"{day:02d}.{month:02d}.{year}"),
            ("numeric", f"{month}/{day}/{year}"),
        ]
    rule, phrase = rng.choice(phrasings)
    frame = ON_A_DAY.pick(rng, split)
    return Draw(frame.format(phrase), f"{year:04d}-{month:02d}-{day:02d}", f"date, {rule}")


def draw_time(rng: random.Random, split: Split) -> Draw:
    """Draw a time of day, in steps of five minutes, answered as HH:MM on 24 hours."""
    hour, minute = rng.randint(0, 23), rng.choice((0, 0, 15, 30, 30, 45, *range(5, 60, 5)))
    twelve, after = (hour - 1) % 12 + 1, hour % 12 + 1  # the hour, and the next, on a clock face
    half = "am" if hour < 12 else "pm"
    phrasings = [
        ("am pm", f"{twelve}:{minute:02d} {half}"),
        ("am pm", f"{twelve}.{minute:02d} {half}"),
        ("24 hours", f"{hour:02d}{minute:02d} hours"),
    ]
    if hour > 12:  # "9:30" alone could be the evening's
        phrasings += [("24 hours", f"{hour}:{minute:02d}")]
    if minute == 0:
        phrasings += [("am pm", f"{twelve} {half}")] * 2
        if hour in (0, 12):
            phrasings += [("named", "midnight" if hour == 0 else "noon")]
    # Words need a part of the day that fits both this hour and the next ("quarter to").
    part = (
        "in the morning"
        if 1 <= hour <= 10
        else "in the evening"
        if 18 <= hour <= 21
        else ("in the afternoon" if 13 <= hour <= 16 else "")
    )
    if part:
        past, to = number_word(minute), number_word(60 - minute) if minute > 30 else ""
        words = {
            0: f"{number_word(twelve)} o'clock",
            15: f"quarter past {number_word(twelve)}",
            30: f"half past {number_word(twelve)}",
            45: f"quarter to {number_word(after)}",
        }
        spoken = words.get(
            minute,
            f"{to} to {number_word(after)}" if to else f"{past} past {number_word(twelve)}",
        )
        phrasings += [("words", f"{spoken} {part}")] * 3
    rule, phrase = rng.choice(phrasings)
    frame = AT_A_TIME.pick(rng, split)
    return Draw(frame.format(phrase), f"{hour:02d}:{minute:02d}", f"time, {rule}")


def draw_duration(rng: random.Random, split: Split) -> Draw:
    """Draw a duration; the answer keeps the units of the message (90 minutes is PT90M)."""
    hours, minutes = rng.randint(1, 12), rng.randint(1, 59)
    count = rng.randint(2, 30)
    spoken = number_word(hours)
    unit = "hour" if hours == 1 else "hours"
    minute_unit = "minute" if minutes == 1 else "minutes"
    phrasings = [
        (
            "halves",
            "an hour and a half" if hours == 1 else f"{spoken} and a half hours",
            f"PT{hours}H30M",
        ),
        ("halves", f"{spoken} {unit} and a half", f"PT{hours}H30M"),
        ("quarters", f"{spoken} {unit} and a quarter", f"PT{hours}H15M"),
        ("both", f"{hours} {unit} and {minutes} {minute_unit}", f"PT{hours}H{minutes}M"),
        ("both", f"{spoken} {unit} {number_word(minutes)} {minute_unit}", f"PT{hours}H{minutes}M"),
        ("both", f"{hours}h {minutes}min", f"PT{hours}H{minutes}M"),
        ("minutes", f"{number_word(minutes)} {minute_unit}", f"PT{minutes}M"),
        ("minutes", f"{minutes} {minute_unit}", f"PT{minutes}M"),
        ("hours", f"{spoken} {unit}", f"PT{hours}H"),
        (
            "fraction",
            *rng.choice(
                (
                    ("half an hour", "PT30M"),
                    ("a quarter of an hour", "PT15M"),
                    ("three quarters of an hour", "PT45M"),
                )
            ),
        ),
        ("days", f"{number_word(count)} days", f"P{count}D"),
        ("weeks", f"{number_word(count)} weeks", f"P{count}W"),
        ("days", f"{count} days", f"P{count}D"),
    ]
    rule, phrase, answer = rng.choice(phrasings)
    return Draw(FOR_A_WHILE.pick(rng, split).format(phrase), answer, f"duration, {rule}")


def draw(rng: random.Random, split: Split) -> Draw:
    """Draw one message: half of them dates, a quarter times, a quarter durations."""
    return rng.choice((draw_date, draw_date, draw_time, draw_duration))(rng, split)


DATES = DemoDomain(name="dates", instruction=INSTRUCTION, scorer="exact", draw=draw)
