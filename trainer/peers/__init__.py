"""Other ways to keep a model from drawing people, each in one file, written from its paper.

    text_level   a block-list and rewriting of names, before the model sees the prompt
    negative     negative prompts
    sld          Safe Latent Diffusion: another guidance in the sampling loop
    uce          Unified Concept Editing: cross-attention projections in closed form
    esd          Erased Stable Diffusion (ESD-x): cross-attention learns to steer away
    ablation     Concept ablation: cross-attention learns to answer a name as its neutral text
    prefix       the prefix of this project, always on or for listed names, and the plain model

`trainer.bench` holds them side by side; `docs/bench.md` says how each was adapted and what is not claimed.
"""
