"""Named and typed latents: what is known about a view, kind by kind, and the schema of a stored array.

A kind is a frozen dataclass, one per file. It states its stored columns, the action between two values and how actions
compose and invert, what a head is trained on, the metric of an answer with the baseline of a constant one, and how
values are drawn. `kind` has the interface, `schema` names latents and gives them columns, `actions` goes from names to
the actions of a predictor. A kind of your own is one file and one entry of `schema.KINDS`.
"""
