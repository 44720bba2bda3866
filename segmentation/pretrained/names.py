"""What the published MiT and SegFormer files call each layer, and how their tensors become ours."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..models.mix_transformer import VARIANTS
from .files import State, shorten

Table = list[list[str]]
Names = dict[str, list[str]]  # a layer here -> the layers of the file that make it


def rows_of(text: str) -> Table:
    """The words of each line; indented lines go on with the row before them."""
    return [row.split() for row in re.split(r"\n(?! )", text.strip())]


# Columns: the name here, in Hugging Face's files, in transformers' own modules since version 5, in
# NVlabs' files. i counts stages from 0, n from 1; j counts blocks. "a+b": two layers of that
# file are concatenated into one here.
STAGE_LAYERS = rows_of("""
stages.{i}.merging.merge
    patch_embeddings.{i}.proj        stages.{i}.patch_embeddings.proj        patch_embed{n}.proj
stages.{i}.merging.norm
    patch_embeddings.{i}.layer_norm  stages.{i}.patch_embeddings.layer_norm  patch_embed{n}.norm
stages.{i}.norm
    layer_norm.{i}                   stages.{i}.layer_norm                   norm{n}
""")
BLOCKS = ("stages.{i}.blocks.{j}.", "block.{i}.{j}.", "stages.{i}.blocks.{j}.", "block{n}.{j}.")
BLOCK_LAYERS = rows_of("""
norm1                layer_norm_1             layernorm_before    norm1
attention.query      attention.self.query     attention.q_proj    attn.q
attention.key_value
    attention.self.key+attention.self.value   attention.k_proj+attention.v_proj   attn.kv
attention.reduce
    attention.self.sr          attention.sequence_reduction.sequence_reduction    attn.sr
attention.norm
    attention.self.layer_norm  attention.sequence_reduction.layer_norm            attn.norm
attention.project    attention.output.dense   attention.o_proj    attn.proj
norm2                layer_norm_2             layernorm_after     norm2
ffn.expand           mlp.dense1               mlp.fc1             mlp.fc1
ffn.mix              mlp.dwconv.dwconv        mlp.dwconv.dwconv   mlp.dwconv.dwconv
ffn.contract         mlp.dense2               mlp.fc2             mlp.fc2
""")  # below BLOCKS
DECODER_LAYERS = rows_of("""
decoder.project.{i}
    decode_head.linear_c.{i}.proj
    decode_head.linear_projections.{i}.proj
    decode_head.linear_c{n}.proj
decoder.fuse
    decode_head.linear_fuse   decode_head.linear_fuse   decode_head.linear_fuse.conv
decoder.norm
    decode_head.batch_norm    decode_head.batch_norm    decode_head.linear_fuse.bn
decoder.classify
    decode_head.classifier    decode_head.classifier    decode_head.linear_pred
""")
ENCODERS = (  # column, what stands before the names
    (1, "segformer.encoder."),
    (1, "encoder."),
    (2, "segformer."),
    (2, ""),
    (3, "backbone."),
    (3, ""),
)


def layer_names(table: Table, column: int, before: str, i: int, j: int = 0) -> Names:
    """The layers of one table as one kind of file names them, numbers filled in."""
    blocks = BLOCKS if table is BLOCK_LAYERS else [""] * 4
    numbers = {"i": i, "n": i + 1, "j": j}
    names = {}
    for row in table:
        ours = (blocks[0] + row[0]).format(**numbers)
        theirs = row[column].split("+")
        names[ours] = [before + (blocks[column] + name).format(**numbers) for name in theirs]
    return names


def encoder_names(depths: Sequence[int], column: int, before: str) -> Names:
    """The names of all layers of an encoder whose stages have so many blocks."""
    names: Names = {}
    for i, depth in enumerate(depths):
        names |= layer_names(STAGE_LAYERS, column, before, i)
        for j in range(depth):
            names |= layer_names(BLOCK_LAYERS, column, before, i, j)
    return names


def segformer_names(encoder: Names, column: int) -> Names:
    """Those of a whole SegFormer with the paper's decoder."""
    names = {f"encoder.{ours}": theirs for ours, theirs in encoder.items()}
    for i in range(4):
        names |= layer_names(DECODER_LAYERS, column, "", i)
    return names


def recognise(state: State, path: Path) -> tuple[str, Names, int]:
    """The MiT variant in a file, the names of its encoder's layers, and the column they are from.

    BadInput for anything else.
    """
    for column, before in ENCODERS:
        first = layer_names(STAGE_LAYERS, column, before, 0)
        merge = first["stages.0.merging.merge"][0] + ".weight"
        if merge in state:
            break
    else:
        raise foreign("MiT that Hugging Face or NVlabs saved", state, path)
    depths = []
    for i in range(4):
        for j in itertools.count():
            block = layer_names(BLOCK_LAYERS, column, before, i, j)
            if not any(f"{layer}.weight" in state for layers in block.values() for layer in layers):
                depths.append(j)
                break
    channels = len(state[merge])
    for variant, (widths, known) in VARIANTS.items():
        if (widths[0], list(known)) == (channels, depths):
            return variant, encoder_names(depths, column, before), column
    raise BadInput(
        f"{path} holds a MiT of {channels} channels and {depths} blocks: none of b0 to b5"
    )


def foreign(expected: str, state: State, path: Path) -> BadInput:
    """The refusal of another model altogether."""
    held = shorten(list(state), 3)
    return BadInput(f"{path} is no {expected}: it holds {held}; give another, or another --model")


def translate(state: State, model: nn.Module, names: Names, path: Path) -> State:
    """The file's tensors under the model's names and in its shapes.

    BadInput that lists all that does not fit.
    """
    translated = {}
    missing, left_over, reshaped = [], dict.fromkeys(state), []
    infinite = []  # float16 holds no variance beyond 65504
    for key, ours in model.state_dict().items():
        layer, _, kind = key.rpartition(".")
        theirs = [f"{name}.{kind}" for name in names[layer]]
        absent = [name for name in theirs if name not in state]
        for name in theirs:
            left_over.pop(name, None)
        if absent:
            # torchvision's file is older than the counter of batches, which nothing here reads.
            if kind != "num_batches_tracked":
                missing += absent
            continue
        infinite += [name for name in theirs if not state[name].isfinite().all()]
        tensor, *second = [state[name] for name in theirs]
        shape = shape_text(tensor)
        if second and second[0].shape == tensor.shape:
            tensor = torch.cat((tensor, *second))
        if tensor.dim() == 4 and ours.dim() == 2:
            # A convolution whose kernel is its stride R: a matrix over R x R x C.
            tensor = tensor.permute(0, 2, 3, 1).flatten(1)
        if tensor.shape != ours.shape:
            reshaped.append(f"{theirs[0]} ({shape}, the model's {key} is {shape_text(ours)})")
        translated[key] = tensor
    problems = {
        "it lacks": missing,
        "it has left over": list(left_over),
        "of another shape are": reshaped,
        "not finite are": infinite,
    }
    told = [f"{what} {shorten(keys, 30)}" for what, keys in problems.items() if keys]
    if told:
        raise BadInput(f"{path} does not fit {type(model).__name__}: {'; '.join(told)}")
    return translated


def shape_text(tensor: Tensor) -> str:
    """A shape as people write it: 64x3x7x7."""
    return "x".join(map(str, tensor.shape))
