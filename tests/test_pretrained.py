"""Encoder weights: every form of file, fetched once, and a sentence for all that is wrong."""

import hashlib
import http.server
import pickle
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
import transformers
from references import nvlabs, reference_config, refused, shuffled
from safetensors.torch import load_file
from torch import nn
from torchvision import models

from segmentation import pretrained
from segmentation.models.mix_transformer import MixTransformer
from segmentation.models.segformer import SegFormer
from segmentation.models.unet import ResNet18UNet
from segmentation.pretrained import files as weight_files
from segmentation.pretrained import load_encoder_weights

pytestmark = pytest.mark.usefixtures("small_models")


def legacy_state(model: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """Under the names of the files on Hugging Face's hub, which save_pretrained still writes."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def classifier(small_models, tmp_path_factory) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """An ImageNet MiT-b0 in transformers, and its tensors as in nvidia/mit-b0."""
    model = shuffled(transformers.SegformerForImageClassification(reference_config("b0")))
    return model, legacy_state(model, tmp_path_factory.mktemp("mit-b0"))


def test_an_encoder_alone_is_no_segformer(classifier, tmp_path):
    torch.save(classifier[1], tmp_path / "mit.bin")
    with refused("decode_head.classifier", "--encoder-weights"):
        SegFormer.from_huggingface(tmp_path / "mit.bin")


# --- from a file ---


@pytest.mark.parametrize(
    "layout", ["hugging face", "hugging face without prefix", "transformers 5", "nvlabs"]
)
@torch.no_grad()
def test_mit_features_are_those_of_transformers(layout, classifier, tmp_path):
    """In float64, so that an eps of 1e-6 for 1e-5 would show."""
    model, state = classifier
    state = {
        "hugging face": state,
        "hugging face without prefix": {k.removeprefix("segformer."): v for k, v in state.items()},
        "transformers 5": model.state_dict(),
        "nvlabs": {name.removeprefix("backbone."): value for name, value in nvlabs(state).items()},
    }[layout]
    torch.save(state, tmp_path / "mit.pth")
    reference = transformers.SegformerForImageClassification(reference_config("b0"))
    reference.load_state_dict(model.state_dict())
    segformer = SegFormer(2)
    assert load_encoder_weights(segformer, tmp_path / "mit.pth")["path"] == str(
        tmp_path / "mit.pth"
    )
    image = torch.randn(1, 3, 75, 101, dtype=torch.float64)
    expected = reference.double().eval().segformer(image, output_hidden_states=True).hidden_states
    features = segformer.encoder.double().eval()(image)
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=1e-9, atol=1e-9)


def test_a_bare_encoder_takes_weights_too(classifier, tmp_path):
    torch.save(classifier[1], tmp_path / "mit.bin")
    segformer, encoder = SegFormer(2), MixTransformer("b0")
    load_encoder_weights(segformer, str(tmp_path / "mit.bin"))
    load_encoder_weights(encoder, tmp_path / "mit.bin")
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, segformer.encoder.state_dict()[name])


# torchvision's own file is older than num_batches_tracked.
@pytest.mark.parametrize("counters", [True, False])
def test_resnet_weights_are_taken_as_they_are(counters, tmp_path):
    reference = shuffled(models.resnet18(weights=None))
    state = {
        k: v
        for k, v in reference.state_dict().items()
        if counters or not k.endswith("num_batches_tracked")
    }
    torch.save(state, tmp_path / "resnet18.pth")
    model = ResNet18UNet(2)
    assert load_encoder_weights(model, tmp_path / "resnet18.pth")["source"] == "file"
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[name]), name


def test_missing_and_left_over_keys_are_listed(classifier, tmp_path):
    state = dict(classifier[1])
    for key in ("block.0.0.attention.self.value.bias", "layer_norm.3.weight"):
        del state[f"segformer.encoder.{key}"]
    state["segformer.encoder.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "mit.bin")
    with refused(
        str(tmp_path / "mit.bin"),
        "lacks segformer.encoder.block.0.0.attention.self.value.bias, "
        "segformer.encoder.layer_norm.3.weight;",
        "left over segformer.encoder.extra",
    ):
        load_encoder_weights(SegFormer(2), tmp_path / "mit.bin")


def test_resnet_with_keys_missing_or_left_over_is_refused(tmp_path):
    state = models.resnet18(weights=None).state_dict()
    torch.save(
        {k: v for k, v in state.items() if k != "layer2.0.conv1.weight"}, tmp_path / "less.pth"
    )
    torch.save({**state, "layer5.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with refused("less.pth", "lacks layer2.0.conv1.weight"):
        load_encoder_weights(ResNet18UNet(2), tmp_path / "less.pth")
    with refused("more.pth", "left over layer5.weight"):
        load_encoder_weights(ResNet18UNet(2), tmp_path / "more.pth")


def test_shapes_that_differ_are_told_with_both(classifier, tmp_path):
    name = "segformer.encoder.patch_embeddings.1.proj.weight"
    torch.save({**classifier[1], name: torch.zeros(16, 8, 5, 5)}, tmp_path / "mit.bin")
    with refused(name, "16x8x5x5", "16x8x3x3"):
        load_encoder_weights(SegFormer(2), tmp_path / "mit.bin")
    torch.save(classifier[1], tmp_path / "mit.bin")
    with refused("8x3x7x7", "8x4x7x7"):
        load_encoder_weights(SegFormer(2, in_channels=4), tmp_path / "mit.bin")


@pytest.mark.parametrize(
    ("held", "wanted"), [("b1", "b0"), ("b0", "b1"), ("b1", "b2"), ("b2", "b1")]
)
def test_another_variants_file_is_named(held, wanted, tmp_path):
    with torch.device("meta"):
        state = transformers.SegformerForImageClassification(reference_config(held)).state_dict()
    torch.save({k: torch.zeros(()).expand(v.shape) for k, v in state.items()}, tmp_path / "mit.bin")
    with refused(f"holds MiT-{held}, the model is {wanted}", f"--variant {held}"):
        load_encoder_weights(SegFormer(2, wanted), tmp_path / "mit.bin")


def test_the_other_models_file_is_refused(classifier, tmp_path):
    torch.save(classifier[1], tmp_path / "mit.bin")
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    with refused("mit.bin", "no ResNet18", "segformer.encoder."):
        load_encoder_weights(ResNet18UNet(2), tmp_path / "mit.bin")
    with refused("resnet.pth", "no MiT", "conv1.weight"):
        load_encoder_weights(SegFormer(2), tmp_path / "resnet.pth")


class Hostile:
    def __init__(self, flag: Path):
        self.flag = flag

    def __reduce__(self):
        return Path.touch, (self.flag,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "kind", ["hostile", "hostile pickle", "truncated", "empty", "text", "nested", "numbers", "list"]
)
@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
def test_bad_files_are_one_sentence_and_run_nothing(kind, name, classifier, tmp_path):
    file, flag = tmp_path / name, tmp_path / "flag"
    if kind == "hostile":
        torch.save({"conv1.weight": Hostile(flag)}, file)
    elif kind == "hostile pickle":
        file.write_bytes(pickle.dumps({"conv1.weight": Hostile(flag)}))
    elif kind == "truncated":
        torch.save(classifier[1], file)
        file.write_bytes(file.read_bytes()[:100_000])
    elif kind == "empty":
        file.touch()
    elif kind == "text":
        file.write_text("<html>not found</html>\n")
    else:
        torch.save(
            {"nested": {"data": classifier[1]}, "numbers": {"epoch": 3}, "list": [1, 2]}[kind],
            file,
        )
    for load in (
        lambda: load_encoder_weights(SegFormer(2), file),
        lambda: SegFormer.from_huggingface(file),
    ):
        with refused(str(file)):
            load()
    assert not flag.exists()


# --- from the network ---


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, and misbehaves at the paths that say how."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.over = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.asked.append(self.path)
        body = self.server.files.get(self.path.rpartition("/")[2], b"<html>hello</html>")
        if "mute" in self.path:
            self.server.over.wait(20)
            return
        if "absent" in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(
            body[: len(body) // 2] if "cut" in self.path or "stall" in self.path else body
        )
        self.wfile.flush()
        if "stall" in self.path:
            self.server.over.wait(20)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path, classifier):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    running = Server()
    torch.save(classifier[1], tmp_path / "mit")
    torch.save(shuffled(models.resnet18(weights=None)).state_dict(), tmp_path / "resnet")
    resnet = (tmp_path / "resnet").read_bytes()
    running.files["pytorch_model.bin"] = (tmp_path / "mit").read_bytes()
    running.resnet = f"resnet18-{hashlib.sha256(resnet).hexdigest()[:8]}.pth"
    running.files[running.resnet] = resnet
    threading.Thread(
        target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    ).start()
    yield running
    running.over.set()
    running.shutdown()
    running.server_close()


def cached(tmp_path: Path) -> list[str]:
    return sorted(file.name for file in tmp_path.glob("torch/hub/checkpoints/*"))


def test_mit_is_fetched_once_and_kept(server, monkeypatch, tmp_path):
    digest = hashlib.sha256((tmp_path / "mit").read_bytes()).hexdigest()
    monkeypatch.setitem(pretrained.MIT_FILES, "b0", ("c0ffee", digest))
    path = "/mit-{variant}/{revision}/pytorch_model.bin"
    monkeypatch.setattr(pretrained, "MIT_URL", server.address + path)
    first, second, from_file = SegFormer(2), SegFormer(2), SegFormer(2)
    for model in (first, second):
        record = load_encoder_weights(model, "imagenet")
    assert record == {
        "source": "imagenet",
        "url": f"{server.address}/mit-b0/c0ffee/pytorch_model.bin",
        "sha256": digest,
        "licence": pretrained.MIT_LICENCE,
        "path": str(tmp_path / "torch/hub/checkpoints/mit-b0.bin"),
    }
    assert "non-commercial" in record["licence"]
    assert server.asked == ["/mit-b0/c0ffee/pytorch_model.bin"]
    assert cached(tmp_path) == ["mit-b0.bin"]
    load_encoder_weights(from_file, tmp_path / "mit")
    for name, tensor in from_file.encoder.state_dict().items():
        assert torch.equal(tensor, first.encoder.state_dict()[name])
        assert torch.equal(tensor, second.encoder.state_dict()[name])


def test_resnet_is_fetched_into_torchvisions_place(server, monkeypatch, tmp_path):
    assert models.ResNet18_Weights.IMAGENET1K_V1.url == pretrained.RESNET18_URL
    monkeypatch.setattr(pretrained, "RESNET18_URL", f"{server.address}/{server.resnet}")
    model = ResNet18UNet(2)
    record = load_encoder_weights(model, "imagenet")
    assert record["licence"] == pretrained.RESNET18_LICENCE
    assert "BSD-3" in record["licence"]
    assert cached(tmp_path) == [server.resnet]
    server.shutdown()
    load_encoder_weights(ResNet18UNet(2), "imagenet")
    expected = torch.load(tmp_path / "resnet", weights_only=True)
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_downloads_of_another_hash_are_refused(server, monkeypatch, tmp_path):
    server.files["resnet18-00000000.pth"] = server.files[server.resnet]
    monkeypatch.setattr(pretrained, "RESNET18_URL", f"{server.address}/resnet18-00000000.pth")
    with refused(pretrained.RESNET18_URL, "hash"):
        load_encoder_weights(ResNet18UNet(2), "imagenet")
    monkeypatch.setattr(pretrained, "MIT_URL", server.address + "/{variant}/pytorch_model.bin")
    with refused("/b0/pytorch_model.bin", "hash", pretrained.MIT_FILES["b0"][1]):
        load_encoder_weights(SegFormer(2), "imagenet")
    assert cached(tmp_path) == []


@pytest.mark.parametrize(
    "way", ["refused", "absent", "mute", "stall", "cut", "foreign", "unwritable"]
)
@pytest.mark.parametrize("build", [SegFormer, ResNet18UNet])
def test_a_failed_download_is_one_sentence_that_says_what_to_do(
    build, way, server, monkeypatch, tmp_path
):
    monkeypatch.setattr(weight_files, "TIMEOUT", 0.4)
    address = server.address
    if way == "refused":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{free.getsockname()[1]}"
    elif way == "unwritable":
        (tmp_path / "torch").write_text("a file where the cache's folder should be")
    elif way == "foreign":
        server.files.clear()
    monkeypatch.setattr(pretrained, "MIT_URL", f"{address}/{way}/mit-{{variant}}/pytorch_model.bin")
    monkeypatch.setattr(pretrained, "RESNET18_URL", f"{address}/{way}/{server.resnet}")
    url, name = (
        (f"{address}/{way}/mit-b0/pytorch_model.bin", "mit-b0.bin")
        if build is SegFormer
        else (pretrained.RESNET18_URL, server.resnet)
    )
    model = build(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    start = time.monotonic()
    with refused(url, str(tmp_path / "torch/hub/checkpoints" / name), "--encoder-weights none"):
        load_encoder_weights(model, "imagenet")
    assert time.monotonic() - start < 5
    assert len(server.asked) <= 1
    assert cached(tmp_path) == []
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_imagenet_weights_take_three_channels():
    for model in (SegFormer(2, in_channels=4), ResNet18UNet(2, in_channels=4)):
        with refused("3 channels", "this model 4", "--encoder-weights none"):
            load_encoder_weights(model, "imagenet")
