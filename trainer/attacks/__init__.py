"""Attacks on a prefix: what somebody who wants a person drawn anyhow can try, and how far it gets them.

Black box, with nothing but the guard's own interface: `names` writes the name otherwise, `prompts` says something
around it or describes the person, `calls` uses the other arguments. `suite` measures them, class by class.
White box, with the weights in hand: `search` looks for tokens or embeddings that undo the prefix, `curve` measures how
many steps that takes.
Against them, within the method: `adversary` attacks the prefix while it is trained, `reference` makes the output check
of the reference world.
"""
