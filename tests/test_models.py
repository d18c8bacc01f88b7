"""Models: other implementations as oracles, files of weights (also hostile ones), and what head and classifier may see."""
import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.testing import assert_close

from arcbook import models as M

FAMILIES = ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "mnasnet0_5", "mobilenet_v2",
            "mobilenet_v3_small", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "swin_t", "swin_v2_t", "vgg11", "vit_b_32"]


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def noise(*shape): return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- ResNets

def naive_resnet(weights, x, depth):
    "ResNet of He et al. for CIFAR in inference, from a state dict, written without modules"
    def bn(x, at):
        mean, var, gain, bias = (weights[f"{at}.{k}"].view(-1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * gain + bias
    x = F.relu(bn(F.conv2d(x, weights["conv1.weight"], padding=1), "bn1"))
    for i in range((depth - 2) // 2):
        stride = 2 if i and i % (depth // 6) == 0 else 1
        y = F.relu(bn(F.conv2d(x, weights[f"blocks.{i}.conv1.weight"], stride=stride, padding=1), f"blocks.{i}.bn1"))
        y = bn(F.conv2d(y, weights[f"blocks.{i}.conv2.weight"], padding=1), f"blocks.{i}.bn2")
        if stride == 2:
            kept, x = x[:, :, ::2, ::2], torch.zeros_like(y)
            x[:, y.shape[1] // 4:3 * y.shape[1] // 4] = kept
        x = F.relu(x + y)
    return x.mean((2, 3))


@pytest.mark.parametrize("depth", [8, 20])
@pytest.mark.parametrize("size", [16, 32, 27])
def test_resnet_equals_naive(depth, size):
    model = seeded(lambda: M.resnet_cifar(depth)).double()
    x = noise(8, 3, size, size).double()
    model(x)   # running statistics that are not 0 and 1
    assert_close(model.eval()(x), naive_resnet(model.state_dict(), x, depth))


@pytest.mark.parametrize("depth, millions", [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_published_sizes(depth, millions):
    count = sum(p.numel() for p in M.Network(f"resnet{depth}", 10, head=None).parameters())
    assert round(count / 1e6, 1 if depth == 110 else 2) == millions


def test_resnet18_small_equals_torchvision_in_training():
    ours, theirs = seeded(lambda: M.resnet18_small(64)), torchvision.models.resnet18()
    theirs.conv1, theirs.maxpool, theirs.fc = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity(), nn.Identity()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = noise(4, 3, 16, 16)
    for model in (ours, theirs): model.train()(x).square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True): assert_close(a.grad, b.grad, atol=1e-3, rtol=1e-3)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True): assert_close(a, b)


@pytest.mark.parametrize("name", ["resnet8", "resnet18-small"])
@pytest.mark.parametrize("size", [8, 16, 32])
def test_sizes_layouts_and_precisions(name, size):
    net = seeded(lambda: M.Network(M.backbone(name, width=8), 7)).eval()
    x = noise(3, 3, size, size)
    out = net(x)
    packed = copy.deepcopy(net).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for a, b in zip(out, packed): assert_close(a, b, atol=1e-5, rtol=1e-4)
    for a, b in zip(out, copy.deepcopy(net).double()(x.double())): assert_close(a.double(), b, atol=1e-4, rtol=1e-3)
    with torch.autocast("cpu", torch.bfloat16): half = net(x)
    for a, b in zip(out, half): assert_close(a, b.float(), atol=0.1, rtol=0.1)
    assert [v.shape for v in net(x[:1])] == [(1, out.features.shape[1]), (1, 7), (1, 128)]


def test_compiles_as_one_graph():
    net = seeded(lambda: M.Network("resnet8", 7)).eval()
    x = noise(4, 3, 16, 16)
    compiled = torch.compile(net, fullgraph=True, backend="eager")(x)
    for a, b in zip(net(x), compiled): assert_close(a, b)


# ---------------------------------------------------------------- backbones by name

def test_every_family_of_torchvision_loses_its_last_layer():
    with torch.device("meta"):
        for name in FAMILIES:
            whole = torchvision.models.get_model(name)
            last = [m for m in whole.modules() if type(m) is nn.Linear][-1]
            assert last.out_features == 1000
            bare = M.backbone(name)
            assert bare.num_features == last.in_features
            dropped = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in bare.parameters())
            assert dropped == sum(p.numel() for p in last.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_x_400mf", "squeezenet1_1"])
def test_features_are_what_the_classifier_saw(name):
    whole = seeded(lambda: torchvision.models.get_model(name)).eval()
    if name.startswith("squeezenet"):
        with pytest.raises(ValueError, match="must have an nn.Linear classifier"): M.remove_classifier(whole)
        return
    last, x = [m for m in whole.modules() if type(m) is nn.Linear][-1], noise(2, 3, 64, 64)
    logits = whole(x)
    assert_close(last(M.remove_classifier(whole)(x)), logits)


def test_auxiliary_classifiers_are_gone():
    model = M.backbone("googlenet", init_weights=False).train()
    assert model(noise(2, 3, 64, 64)).shape == (2, 1024)


@pytest.mark.parametrize("name", ["resnet9", "resnet", "resnet18-tiny", "", "fasterrcnn_resnet50_fpn"])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="^(name|depth) must be"): M.backbone(name)


def test_no_network_for_published_weights(monkeypatch, tmp_path):
    import urllib.request
    def offline(*args, **kwargs): raise OSError("network is unreachable")
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(OSError, match="no weights for resnet18 .*: pass a file"): M.backbone("resnet18", "imagenet")


# ---------------------------------------------------------------- weights from files

@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s},
                                  lambda s: {f"module.{k}": v for k, v in s.items()},
                                  lambda s: {"state_dict": {f"module.backbone.{k}": v for k, v in s.items()}}])
def test_weights_load_from_common_files(tmp_path, wrap):
    model = seeded(lambda: M.resnet_cifar(8))
    torch.save(wrap(model.state_dict()), tmp_path / "w.pt")
    loaded = M.backbone("resnet8", str(tmp_path / "w.pt"))
    assert all(v.equal(loaded.state_dict()[k]) for k, v in model.state_dict().items())


def test_network_s_own_state_dict_gives_back_the_backbone(tmp_path):
    net = seeded(lambda: M.Network("resnet8", 10))
    torch.save(net.state_dict(), tmp_path / "w.pt")
    other = M.Network("resnet8", 3, weights=str(tmp_path / "w.pt"))
    assert other.backbone.conv1.weight.equal(net.backbone.conv1.weight) and other.classifier.out_features == 3


def test_torchvision_file_with_its_classifier(tmp_path):
    whole = torchvision.models.mobilenet_v3_small()
    torch.save(whole.state_dict(), tmp_path / "w.pt")
    x = noise(2, 3, 64, 64)
    loaded = M.backbone("mobilenet_v3_small", str(tmp_path / "w.pt")).eval()
    assert_close(whole.classifier[3](loaded(x)), whole.eval()(x))


def test_missing_and_misfitting_weights_change_nothing(tmp_path):
    state = seeded(lambda: M.resnet_cifar(8)).state_dict()
    cases = {"got none for blocks.2.bn2.weight": {k: v for k, v in state.items() if k != "blocks.2.bn2.weight"},
             r"bn1.weight must be \[16\], got \[4\]": state | {"bn1.weight": torch.ones(4)}}
    for text, broken in cases.items():
        torch.save(broken, tmp_path / "w.pt")
        model = seeded(lambda: M.resnet_cifar(8), 1)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=text): M.load_weights(model, str(tmp_path / "w.pt"))
        assert all(v.equal(before[k]) for k, v in model.state_dict().items())


class Hostile:
    def __init__(self, target): self.target = target
    def __reduce__(self): return os.mkdir, (self.target,)


def test_hostile_and_broken_files_are_refused(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"conv1.weight": Hostile(str(tmp_path / "owned"))}, path)
    with pytest.raises(ValueError, match="weights must be a file of tensors"): M.backbone("resnet8", str(path))
    assert not (tmp_path / "owned").exists()
    torch.save(seeded(lambda: M.resnet_cifar(8)).state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="weights must be a file of tensors"): M.backbone("resnet8", str(path))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="weights must be a file of tensors"): M.backbone("resnet8", str(path))
    torch.save(torch.zeros(3), path)
    with pytest.raises(ValueError, match="weights must be a file with a state dict"): M.backbone("resnet8", str(path))
    with pytest.raises(FileNotFoundError): M.backbone("resnet8", str(tmp_path / "none.pt"))


# ---------------------------------------------------------------- the network

def test_classifier_never_sees_the_head():
    net, x = seeded(lambda: M.Network("resnet8", 10)), noise(6, 3, 16, 16)
    for mode in (True, False):
        full, bare = copy.deepcopy(net).train(mode), copy.deepcopy(net).train(mode)
        bare.head = nn.Identity()
        for p in full.head.parameters(): p.data.fill_(float("nan"))
        assert full(x).logits.equal(bare(x).logits) and full(x).embeddings.isnan().all()


@pytest.mark.parametrize("term, idle", [("logits", "head"), ("embeddings", "classifier"), ("features", "head")])
def test_gradients_stay_in_their_branch(term, idle):
    net = seeded(lambda: M.Network("resnet8", 10))
    getattr(net(noise(4, 3, 16, 16)), term).square().sum().backward()
    assert all(p.grad is None for p in getattr(net, idle).parameters())
    assert all(p.grad is not None for p in net.backbone.parameters())


def test_seed_decides_the_start_and_the_head_comes_last():
    nets = [seeded(lambda h=h: M.Network("resnet8", 10, head=h)) for h in ("mlp2", "mlp2", "linear", "none", None)]
    for other in nets[1:]:
        for key, value in other.state_dict().items():
            if not key.startswith("head") or other is nets[1]: assert value.equal(nets[0].state_dict()[key])
    assert {key.split(".")[0] for key in nets[0].state_dict()} == {"backbone", "classifier", "head"}


def test_head_with_batch_norm_and_width():
    head = M.projection_head("mlp2", 64, 32, hidden=48, batch_norm=True)
    assert [tuple(p.shape) for p in head.parameters()] == [(48, 64), (48,), (48,), (48,), (32, 48), (32,)]
    assert M.Network("resnet8", 5, dim=32)(noise(2, 3, 16, 16)).embeddings.shape == (2, 32)


def test_any_module_with_num_features_is_a_backbone():
    class Flat(nn.Flatten): num_features = 3 * 4 * 4
    assert M.Network(Flat(), 5)(noise(2, 3, 4, 4)).logits.shape == (2, 5)


def test_import_is_light():
    code = "import sys, arcbook.views, arcbook.models; print([m for m in ('torchvision', 'matplotlib', 'sklearn', 'nbdev') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_network_of_a_whole_classifier_is_refused_with_the_way_out():
    from torchvision.models import resnet18
    whole = resnet18()
    with pytest.raises(ValueError, match=r"backbone must have num_features .*remove_classifier.* got ResNet"): M.Network(whole, 3)
    assert M.Network(M.remove_classifier(whole), 3).classifier.in_features == 512


# ---------------------------------------------------------------- images averaged over squares

@pytest.mark.parametrize("name, factor", [("resnet8/2", 2), ("resnet14/3", 3), ("resnet18-small/4", 4), ("mobilenet_v3_small/2", 2)])
def test_a_factor_after_the_slash_averages_squares(name, factor):
    ours = seeded(lambda: M.backbone(name)).eval()
    body = seeded(lambda: M.backbone(name.partition("/")[0])).eval()
    x = noise(2, 3, 24, 24)
    squares = torch.stack([torch.stack([x[:, :, i:i + factor, j:j + factor].mean((2, 3)) for j in range(0, 24, factor)], -1)
                           for i in range(0, 24, factor)], -2)
    assert_close(ours(x), body(squares))
    assert ours.num_features == body.num_features and M.Network(name, 5)(x).logits.shape == (2, 5)


def test_a_factor_and_weights_from_a_file(tmp_path):
    body = seeded(lambda: M.resnet_cifar(8))
    torch.save(body.state_dict(), tmp_path / "w.pt")
    loaded = M.backbone("resnet8/2", str(tmp_path / "w.pt"))
    assert all(v.equal(body.state_dict()[k.partition(".")[2]]) for k, v in loaded.state_dict().items())   # of the body inside
    assert type(M.backbone("resnet8/1")) is M.ResNet


@pytest.mark.parametrize("name", ["resnet8/", "resnet8/0", "resnet8/-2", "resnet8/2.5", "resnet8/two", "resnet8/2/2", "/2"])
def test_a_factor_is_a_whole_number(name):
    with pytest.raises(ValueError, match="^name must be"): M.backbone(name)


def test_modules_say_what_they_are():
    assert "num_features=64, num_classes=10" in repr(M.Network("resnet8", 10)) and "num_features=64" in repr(M.resnet_cifar(8))
    assert "stride=2, shortcut='B'" in repr(M.Block(4, 8, 2, "B"))
