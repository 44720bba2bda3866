"""Whole SegFormers from Hugging Face: the functions of transformers, or one sentence why not."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from references import NAMES, reference_config, refused, shuffled
from safetensors.torch import load_file
from torch import nn

from segmentation.models.mix_transformer import VARIANTS
from segmentation.models.segformer import SegFormer
from segmentation.pretrained.huggingface import with_scales_reversed
from segmentation.pretrained.names import recognise, segformer_names, translate


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A SegFormer-B0 as save_pretrained leaves it: config.json and model.safetensors."""
    path = tmp_path_factory.mktemp("segformer-b0")
    shuffled(transformers.SegformerForSemanticSegmentation(reference_config("b0"))).save_pretrained(
        path
    )
    return path


@pytest.fixture(scope="module")
def reference(folder) -> nn.Module:
    return transformers.SegformerForSemanticSegmentation.from_pretrained(folder).eval()


def normalised(image: torch.Tensor, model: SegFormer) -> torch.Tensor:
    return model.normalise(image).contiguous()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def compare_logits(reference: nn.Module, model: SegFormer, size: tuple[int, int]) -> float:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = reference(normalised(image, model)).logits
        return relative_error(model(image), F.interpolate(logits, size=size, mode="bilinear"))


@pytest.mark.parametrize(
    "variant",
    ["b0", "b1", *(pytest.param(v, marks=pytest.mark.slow) for v in ("b2", "b3", "b4", "b5"))],
)
def test_logits_are_those_of_transformers(variant, tmp_path):
    reference = shuffled(transformers.SegformerForSemanticSegmentation(reference_config(variant)))
    reference.save_pretrained(tmp_path)
    model = SegFormer.from_huggingface(tmp_path)
    assert model.classes == NAMES
    assert not model.training
    for size in ((64, 96), (75, 101)):
        assert compare_logits(reference, model, size) < 1e-4


def test_in_float64_every_norm_has_the_same_eps_and_every_gradient_is_the_same(folder):
    """1e-5 for 1e-6 in a block's norm changes the sixth digit: float32 would not show it."""
    reference = (
        transformers.SegformerForSemanticSegmentation.from_pretrained(folder).double().eval()
    )
    model = SegFormer.from_huggingface(folder).double()
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(1, 3, 75, 101, dtype=torch.float64, generator=generator)
    ours = model(image)
    theirs = F.interpolate(
        reference(normalised(image, model)).logits, size=(75, 101), mode="bilinear"
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    weight = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    # renaming and stacking are linear, so gradients are translated as weights are
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    state = {**reference.state_dict(), **gradients}
    _, encoder, column = recognise(state, folder)
    names = segformer_names(encoder, column)
    expected = with_scales_reversed(translate(state, model, names, folder))
    for name, p in model.named_parameters():
        torch.testing.assert_close(
            p.grad, expected[name], rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_every_form_of_the_same_file_gives_the_same_model(folder, reference, tmp_path):
    published = load_file(folder / "model.safetensors")
    for name, state in {"published": published, "modules": reference.state_dict()}.items():
        (tmp_path / name).mkdir()
        torch.save(state, tmp_path / name / "pytorch_model.bin")
        (tmp_path / name / "config.json").write_text((folder / "config.json").read_text())
    expected = SegFormer.from_huggingface(folder).state_dict()
    for source in (
        folder / "model.safetensors",
        tmp_path / "published",
        tmp_path / "published" / "pytorch_model.bin",
        tmp_path / "modules",
    ):
        model = SegFormer.from_huggingface(str(source))
        assert model.classes == NAMES
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, expected[name]), (source, name)


def test_a_file_alone_tells_its_variant_and_numbers_its_classes(folder, tmp_path):
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "weights.bin")
    model = SegFormer.from_huggingface(tmp_path / "weights.bin")
    assert model.encoder.channels == VARIANTS["b0"][0]
    assert model.classes == ["0", "1", "2", "3", "4"]


def test_half_precision_files_load_as_float32(folder, tmp_path):
    torch.save(
        {k: v.half() for k, v in load_file(folder / "model.safetensors").items()},
        tmp_path / "half.bin",
    )
    assert {p.dtype for p in SegFormer.from_huggingface(tmp_path / "half.bin").parameters()} == {
        torch.float32
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": [1, 2, 4, 8]}, "num_attention_heads"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"id2label": {"0": "a", "1": "b"}}, "names 2 classes, the weights have 5"),
    ],
)
def test_a_config_of_something_else_is_refused(folder, tmp_path, change, message):
    config = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with refused(str(tmp_path / "config.json"), message):
        SegFormer.from_huggingface(tmp_path)


def test_a_broken_config_is_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text("{")
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with refused(str(tmp_path / "config.json"), "not JSON"):
        SegFormer.from_huggingface(tmp_path)


# --- SegFormer.save_huggingface ---


@pytest.mark.parametrize(
    "variant",
    ["b0", "b1", *(pytest.param(v, marks=pytest.mark.slow) for v in ("b2", "b3", "b4", "b5"))],
)
@torch.no_grad()
def test_what_is_saved_has_the_same_logits_in_transformers(variant, tmp_path):
    classes = ["roof", "lawn", "tree"]
    model = SegFormer(3, variant, decoder="mlp").eval()
    for parameter in model.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    model.save_huggingface(tmp_path, classes)
    theirs, report = transformers.SegformerForSemanticSegmentation.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.id2label == dict(enumerate(classes))
    image = torch.rand(1, 3, 64, 96)
    processor = transformers.SegformerImageProcessor.from_pretrained(tmp_path)
    pixels = (image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    inputs = processor(pixels, return_tensors="pt")["pixel_values"]
    logits = F.interpolate(theirs.eval()(inputs).logits, (64, 96), mode="bilinear")
    ours = model(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    assert (logits - ours).abs().max() < 1e-4 * ours.abs().max()
    again = SegFormer.from_huggingface(tmp_path)
    assert again.classes == classes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_what_cannot_be_saved_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="decoder mlp"):
        SegFormer(2).save_huggingface(tmp_path)
    with pytest.raises(ValueError, match="zip"):
        SegFormer(2, decoder="mlp").save_huggingface(tmp_path, ["a"])
    assert not list(tmp_path.iterdir())
