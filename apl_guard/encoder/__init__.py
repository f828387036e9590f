"""What a prefix is bound to: a text encoder, known by its weights and its tokenizer.

`anatomy` sees in a fraction of a millisecond whether a model still has the same modules and tensors, `weights`
whether their values changed, `fingerprint` names them by a digest, `traits` says how close another encoder comes.
"""
