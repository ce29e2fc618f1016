"""Counts the words of a text that comes with the event, and names the ten most frequent."""

NAMED = 10
MARKS = ".,;:!?"


def handler(event, context):
    counts = {}
    words = 0
    for token in event["text"].lower().split():
        word = token.strip(MARKS)
        if word:
            counts[word] = counts.get(word, 0) + 1
            words += 1
    by_count = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return {"words": words, "distinct": len(counts), "top": by_count[:NAMED]}
