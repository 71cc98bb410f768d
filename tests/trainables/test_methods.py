"""Every method over a backbone: gradients reach what should move, nothing frozen moves, the loss is a finite scalar."""

import pytest
import torch

from trainables import backbones, methods
from trainables.draws import generator
from trainables.methods import METHODS, Batch
from trainables.methods.vae_align import patchify
from trainables.training_step import TrainingStep


@pytest.fixture
def backbone():
    model = backbones.create("SiT-T/2", in_channels=8, input_size=8, num_classes=9, depth=6)
    with torch.no_grad():  # away from the start, where the zero layers stop all gradients
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return model


@pytest.fixture
def batch():
    source = torch.Generator().manual_seed(1)
    latents, noise = (torch.randn(4, 8, 8, 8, generator=source) for _ in range(2))
    t = torch.rand(4, generator=source)
    x_t = (1 - t[:, None, None, None]) * latents + t[:, None, None, None] * noise
    labels = torch.tensor([0, 3, 5, 8])
    return Batch(latents, x_t, noise - latents, t, labels, torch.tensor([0, 9, 5, 8]))


def make(kind: str, teacher):
    options = {
        "none": {},
        "vae_align": {"block": 3, "patch": 2, "channels": 8},
        "self_guided": {"teacher": teacher, "layers": (4, 3), "guidance_scale": 30.0},
    }[kind]
    if kind != "none":
        options |= {"width": 96, "projector_width": 16, "generator": generator(0, "method", kind)}
    return methods.create(kind, **options)


@pytest.mark.parametrize("kind", METHODS)
def test_the_contract_of_a_method(kind, backbone, batch):
    teacher = backbones.create("SiT-T/2", seed=1, in_channels=8, input_size=8, num_classes=9, depth=6)
    teacher.requires_grad_(False).eval()
    frozen = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    step = TrainingStep(backbone, make(kind, teacher), weight=0.5)
    losses = step(batch)
    assert losses.total.shape == () and losses.total.isfinite()
    torch.testing.assert_close(losses.total.detach(), losses.diffusion + 0.5 * losses.method)
    losses.total.backward()
    for name, parameter in step.named_parameters():
        if "embedding_table" not in name:  # only the rows of this batch's labels
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(torch.equal(frozen[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not any(parameter is own for parameter in teacher.parameters() for own in step.parameters())
    again = make(kind, teacher)
    again.load_state_dict(step.method.state_dict())
    torch.testing.assert_close(TrainingStep(backbone, again, 0.5)(batch).total, losses.total)


@pytest.mark.parametrize("kind", METHODS)
def test_the_diffusion_loss_does_not_depend_on_the_method(kind, backbone, batch):
    alone = TrainingStep(backbone, methods.create("none"), 0.0)(batch).diffusion
    assert torch.equal(TrainingStep(backbone, make(kind, backbone), 0.5)(batch).diffusion, alone)


def test_the_guided_target_uses_the_true_label_where_the_student_s_is_dropped(backbone, batch):
    method = make("self_guided", backbone)
    hidden = backbone(batch.x_t, batch.t, batch.y, taps=(3,)).hidden
    told = Batch(**{**vars(batch), "labels": batch.y})
    assert not torch.equal(method(hidden, batch), method(hidden, told))


def test_latent_tokens_stand_in_the_order_of_the_backbone_s_own():
    latents = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    tokens = patchify(latents, 2)
    assert tokens.shape == (2, 4, 12)
    # token 1 is the upper right patch; p, p, C with the channel last
    assert tokens[0, 1].tolist() == [latents[0, c, i, j].item() for i in (0, 1) for j in (2, 3) for c in range(3)]


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="vae_align"):
        methods.create("vae")
