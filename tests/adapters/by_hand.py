"""The definition of injection: what each text encoder has to give, computed without the code under test.

A row is [before, P₁ … P_N, the user's tokens cut at their end, after, padding]. CLIP is computed layer by layer;
the others take token embeddings, so they are called with the row of vectors.
"""

import inspect

import torch


@torch.no_grad()
def clip_by_hand(text_encoder, tokenizer, prompts, vectors, length=77, masked=False):
    """Everything a CLIP text model gives: `last`, `hidden` of every layer, `pooled`, `projected`.

    A prompt may be given as ids. `masked` says whether the pipeline hands over the attention mask.
    """
    inner = getattr(text_encoder, "text_model", text_encoder)
    table = inner.embeddings.token_embedding.weight
    n = len(vectors)
    rows, ends = [], []
    for prompt in prompts:
        user = prompt if isinstance(prompt, list) else tokenizer(prompt, add_special_tokens=False).input_ids
        user = user[: length - n - 2]
        after = [*user, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * (length - n - len(user) - 2)]
        rows.append(torch.cat([table[tokenizer.bos_token_id][None], vectors.to(table), table[torch.tensor(after)]]))
        ends.append(1 + n + len(user))
    state = torch.stack(rows) + inner.embeddings.position_embedding.weight[:length]
    is_text = torch.arange(length) <= torch.tensor(ends)[:, None]
    masks = _clip_masks(text_encoder, state, is_text if masked else None)
    hidden = [state]
    for layer in inner.encoder.layers:
        output = layer(state, **masks)
        state = output[0] if isinstance(output, tuple) else output
        hidden.append(state)
    last = inner.final_layer_norm(state)
    pooled = last[torch.arange(len(prompts)), torch.tensor(ends)]
    projected = text_encoder.text_projection(pooled) if hasattr(text_encoder, "text_projection") else None
    return {"last": last, "hidden": hidden, "pooled": pooled, "projected": projected, "mask": is_text}


def _clip_masks(text_encoder, state, is_text):
    """What a layer of CLIP is told of the places that it may look at: version 4 of transformers adds two masks."""
    inner = getattr(text_encoder, "text_model", text_encoder)
    if "causal_attention_mask" not in inspect.signature(inner.encoder.layers[0].forward).parameters:
        from transformers.masking_utils import create_causal_mask

        kept = None if is_text is None else is_text.long()
        mask = create_causal_mask(text_encoder.config, state, kept, None)
        return {"attention_mask": mask, "is_causal": True}
    length, never = state.shape[1], torch.finfo(state.dtype).min
    causal = torch.full((1, 1, length, length), never).triu(1)
    padding = None if is_text is None else torch.where(is_text, 0.0, never)[:, None, None].expand(-1, 1, length, -1)
    return {"attention_mask": padding, "causal_attention_mask": causal}


def row_by_hand(tokenizer, prompt, n, length, before="", after=""):
    """Ids of a row without padding, 0 in the places of the prefix, and where the prefix begins.

    A prompt may be given as ids. `before` and `after` are what the pipeline writes around it; a length of None cuts
    nothing.
    """

    def ids(text, special=False):
        return list(tokenizer(text, add_special_tokens=special).input_ids)

    frame = ids("", special=True)
    end = frame[-1:] if frame and frame[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id) else []
    start = frame[: len(frame) - len(end)] + (ids(before) if before else [])
    room = (length or 1 << 30) - n - len(start) - len(end)
    user = prompt if isinstance(prompt, list) else ids(prompt)
    user = (user + (ids(after) if after else []))[:room]
    return [*start, *[0] * n, *user, *end], len(start)


@torch.no_grad()
def encoder_by_hand(text_encoder, tokenizer, rows, vectors, masked, length, multiple=1, **options):
    """What a text encoder gives that takes token embeddings, and the mask.

    Args:
        rows: From `row_by_hand`; one whose place is None has no prefix.
        masked: Whether the pipeline hands over the attention mask.
        length: Of the padded row; None pads to the longest, and on to a multiple.
    """
    embeddings, mask = rows_by_hand(text_encoder, tokenizer, rows, vectors, length, multiple)
    return text_encoder(inputs_embeds=embeddings, attention_mask=mask if masked else None, **options), mask


@torch.no_grad()
def encoder_with_end(text_encoder, tokenizer, rows, vectors, length, after, *, counts_padding=False, **options):
    """The same for rows with a text behind their padding, which takes positions or not."""
    embeddings, mask = rows_by_hand(text_encoder, tokenizer, rows, vectors, length)
    end = torch.tensor([tokenizer(after).input_ids] * len(rows))
    mask = torch.cat([mask, torch.ones_like(end)], 1)
    embeddings = torch.cat([embeddings, text_encoder.get_input_embeddings()(end)], 1)
    counted = torch.ones_like(mask) if counts_padding else mask
    places = (counted.cumsum(1) - 1).clamp(min=0).expand(3, -1, -1)  # one for each axis of a picture
    return text_encoder(inputs_embeds=embeddings, attention_mask=mask.bool(), position_ids=places, **options), mask


@torch.no_grad()
def m_clip_by_hand(text_encoder, tokenizer, rows, vectors, length):
    """Pooled output, states and mask of a multilingual CLIP: an XLM-RoBERTa, its mean, and a matrix."""
    inner = text_encoder.transformer
    embeddings, mask = rows_by_hand(inner, tokenizer, rows, vectors, length)
    places = mask.cumsum(1) * mask + tokenizer.pad_token_id
    states = inner(inputs_embeds=embeddings, attention_mask=mask, position_ids=places)[0]
    mean = (states * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    return text_encoder.LinearTransformation(mean), states, mask


@torch.no_grad()
def chat_glm_by_hand(text_encoder, tokenizer, rows, vectors, length):
    """The states of a ChatGLM, which wants its tokens first and to be told their positions."""
    embeddings, mask = rows_by_hand(text_encoder, tokenizer, rows, vectors, length)
    return text_encoder(
        input_ids=mask,  # only its shape is looked at
        inputs_embeds=embeddings.transpose(0, 1).contiguous(),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        output_hidden_states=True,
    ).hidden_states


@torch.no_grad()
def rows_by_hand(text_encoder, tokenizer, rows, vectors, length, multiple=1):
    """Token embeddings of padded rows, and the mask."""
    table = text_encoder.get_input_embeddings()
    length = length or -(-max(len(ids) for ids, _ in rows) // multiple) * multiple
    embeddings, masks = [], []
    for ids, place in rows:
        row = table(torch.tensor(ids)).clone()
        if place is not None:
            row[place : place + len(vectors)] = vectors.to(row)
        missing = length - len(ids)
        padding, nothing = table(torch.full((missing,), tokenizer.pad_token_id)), torch.zeros(missing, dtype=torch.long)
        text = torch.ones(len(ids), dtype=torch.long)
        if tokenizer.padding_side == "left":
            embeddings.append(torch.cat([padding, row]))
            masks.append(torch.cat([nothing, text]))
        else:
            embeddings.append(torch.cat([row, padding]))
            masks.append(torch.cat([text, nothing]))
    return torch.stack(embeddings), torch.stack(masks)
