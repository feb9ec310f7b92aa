"""The compositional agent: its loss, its attention, its limits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive_window import CompositionalCreativeAgent
from adaptive_window.model import encoder
from adaptive_window.model.attention import LEVELS, attention, draw_mask, masked_attention
from adaptive_window.model.composer import COMPONENTS, MultiScaleExtractor, agent_loss, novelty_terms
from adaptive_window.model.encoder import EncoderLayer


def small_agent(**changes: int) -> CompositionalCreativeAgent:
    sizes = {"encoding_dim": 8, "component_dim": 4, "composer_heads": 2, "composer_layers": 1, "composer_dim": 16}
    return CompositionalCreativeAgent(**(sizes | changes))


def windows(batch: int = 2, frames: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 8, frames), torch.randn(batch, 8, frames)


def test_loss_takes_means_before_absolute_values() -> None:
    terms = torch.tensor([[0.5, -0.2, 3.0], [-0.3, -0.4, -1.0]])
    assert agent_loss(terms.mean(0)).item() == pytest.approx(0.5 * (0.1 + 0.3) + 0.1 * 1.0)
    torch.testing.assert_close(agent_loss(terms), torch.tensor([0.35 + 0.3, 0.35 + 0.1]))


def test_loss_of_a_batch_is_that_of_its_terms() -> None:
    agent, (x, y) = small_agent().eval(), windows(3)
    output, loss = agent(x, y)
    assert loss.shape == ()
    alone = [agent(x[i : i + 1], y[i : i + 1], "terms") for i in range(3)]
    torch.testing.assert_close(output, torch.cat([o for o, _ in alone]))
    torch.testing.assert_close(loss, agent_loss(torch.cat([t for _, t in alone]).mean(0)))


@pytest.mark.parametrize("novelty", ["original", "corrected"])
def test_what_the_novelty_loss_calls_new(novelty: str) -> None:
    """Copies with the sign turned in every other frame, or in every other sample, pass for new only originally."""
    source, other = torch.randn(4, 128, 200), torch.randn(4, 128, 200)
    level = torch.zeros(4, 6, 200)
    frames = torch.tensor([1.0, -1.0]).repeat(100)
    candidates = {
        "copy": source,
        "turned copy": -source,
        "frames turned": source * frames,
        "samples turned": source * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None],
        "noise": torch.randn(4, 128, 200),
    }
    likeness = {
        name: novelty_terms(output, source, other, level, novelty).mean(0).abs()[0].item()
        for name, output in candidates.items()
    }
    assert likeness["copy"] == pytest.approx(1.0, abs=1e-5)
    assert likeness["turned copy"] == pytest.approx(1.0, abs=1e-5)
    expected = 0.0 if novelty == "original" else 1.0
    assert likeness["frames turned"] == pytest.approx(expected, abs=1e-5)
    assert likeness["samples turned"] == pytest.approx(expected, abs=1e-5)
    assert likeness["noise"] < 0.02  # cos² of independent frames: 1/128 on average


def test_balance_on_weights_is_bounded_and_on_logits_is_not() -> None:
    x = torch.randn(2, 8, 12)
    logits = torch.zeros(2, 6, 12)
    logits[0, :3], logits[1, 3:] = 100.0, 100.0  # each sample hears one stream alone, not the same one
    original, corrected = (novelty_terms(x, x, x, logits, kind)[:, 2] for kind in ("original", "corrected"))
    assert original.tolist() == [300.0, -300.0]  # and the mean calls that balanced
    assert corrected.tolist() == pytest.approx([1.0, 1.0])
    assert novelty_terms(x, x, x, torch.zeros_like(logits), "corrected")[:, 2].tolist() == pytest.approx([0.0, 0.0])


def test_novelty_is_an_argument_and_the_original_the_default() -> None:
    x, y = windows()
    torch.manual_seed(0)
    default = small_agent().eval()
    assert default.novelty == "original"
    corrected = CompositionalCreativeAgent(8, 4, 2, 1, composer_dim=16, novelty="corrected").eval()
    corrected.load_state_dict(default.state_dict())
    (out, loss), (same, other) = default(x, y), corrected(x, y)
    assert torch.equal(out, same)
    assert loss != other
    with pytest.raises(ValueError, match="novelty must be one of original, corrected, got 'new'"):
        CompositionalCreativeAgent(8, novelty="new")


def test_a_silent_frame_leaves_gradients_of_ordinary_size() -> None:
    agent, (x, y) = small_agent().eval(), windows(1)
    x[..., 3] = 0.0  # among others: the mean cosine is not at its own kink
    x, y = x.requires_grad_(), y.requires_grad_()
    grads = torch.autograd.grad(agent(x, y)[1], (x, y))
    assert all(g.isfinite().all() for g in grads)
    assert max(g.abs().max() for g in grads) < 1e3  # 1/COSINE_EPS, over 12 frames


def test_nan_is_not_hidden() -> None:
    agent, (x, y) = small_agent().eval(), windows()
    x[0, 0, 0] = torch.nan
    output, loss = agent(x, y)
    assert output[0].isnan().any()
    assert not output[1].isnan().any()
    assert loss.isnan()


def test_output_is_limited() -> None:
    agent, (x, y) = small_agent().eval(), windows()
    nn.init.constant_(agent.composer.output_projection[3].bias, 1e4)
    assert agent(x, y)[0].abs().max() == 50.0


def test_windows_longer_than_the_position_table() -> None:
    agent, (x, y) = small_agent(), windows(1, 2001)
    with pytest.raises(ValueError, match=r"at most 2000 frames .*, got 2001"):
        agent(x, y)


def test_extractor_normalizes_the_sum_of_both_paths() -> None:
    extractor, x = MultiScaleExtractor(8, 4), torch.randn(2, 8, 30)
    for branch, out in zip(("rhythm", "harmony", "timbre"), extractor(x), strict=True):
        first, second = getattr(extractor, f"{branch}_conv1"), getattr(extractor, f"{branch}_conv2")
        path = F.leaky_relu(second(F.leaky_relu(first(x), 0.2)), 0.2) + getattr(extractor, f"{branch}_skip")(x)
        expected = F.batch_norm(path, None, None, training=True)
        torch.testing.assert_close(out, expected)


def test_statistics() -> None:
    agent, (x, y) = small_agent(), windows()
    agent.input_extractor.eval()  # a mode of its own, to be restored
    before = [(m, m.training) for m in agent.modules()]
    stats = agent.get_component_statistics(x, y)
    assert all(m.training == training for m, training in before)
    assert list(stats) == [f"{c}_energy" for c in COMPONENTS] + [f"{c}_weight" for c in COMPONENTS]
    assert sum(stats[f"{c}_weight"] for c in COMPONENTS) == pytest.approx(1.0)
    agent.eval()
    parts = [*agent.input_extractor(x), *agent.target_extractor(y)]
    for name, part in zip(COMPONENTS, parts, strict=True):
        assert stats[f"{name}_energy"] == pytest.approx(part.square().mean().sqrt().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"composer_layers": 0}, "composer_layers must be at least 1"),
        ({"composer_dim": 15}, "composer_dim must be even and a multiple of composer_heads"),
        ({"composer_heads": 3}, "composer_dim must be even and a multiple of composer_heads"),
    ],
)
def test_wrong_sizes(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_agent(**sizes)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, factor: float) -> Tensor:
    weights = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1)
    return (weights * mask * factor) @ v


def qkv(*shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]


def test_masked_attention_is_the_definition_and_its_gradients_are_exact() -> None:
    tensors = qkv(2, 3, 10, 4)
    mask = draw_mask(tensors[0], LEVELS // 4)
    out, expected = masked_attention(*tensors, mask, 1.5), dense_attention(*tensors, mask, 1.5)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda q, k, v: masked_attention(q, k, v, mask, 1.5), tensors)
    grad = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(o, tensors, grad) for o in (out, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_second_derivative_is_refused_and_not_zero() -> None:
    tensors = qkv(1, 2, 5, 4)
    (grad,) = torch.autograd.grad(attention(*tensors, 0.5).square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


def test_masked_attention_at_the_size_of_use() -> None:
    """800 frames: blocked matrix products and a softmax in place, over rows longer than any vector register."""
    tensors = qkv(2, 2, 800, 64, dtype=torch.float32)
    mask = draw_mask(tensors[0], LEVELS // 10)
    out = masked_attention(*tensors, mask, 1.0)
    grads = torch.autograd.grad(out.sum(), tensors)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = dense_attention(*exact, mask, 1.0)
    # sums of up to 800 products of rounding 2^-24 each; entries of order 1 and gradients of order sqrt(800)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=800 * 2**-24)
    for a, b in zip(grads, torch.autograd.grad(expected.sum(), exact), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=800 * 2**-24 * 30)


def test_operators_fit_torch_library() -> None:
    tensors = qkv(2, 3, 10, 4)
    mask = draw_mask(tensors[0], 9)
    torch.library.opcheck(masked_attention, (*tensors, mask, 1.5))
    torch.library.opcheck(draw_mask, (tensors[0].detach(), 9), test_utils=("test_schema", "test_faketensor"))


def test_mask_drops_the_fraction_asked_for() -> None:
    q = torch.zeros(2, 3, 401, 4)  # 3·401² draws a sample: no multiple of the four in a random number
    mask = draw_mask(q, round(0.1 * LEVELS))
    assert mask.shape == (2, 3, 401, 401)
    dropped = (mask == 0).double().mean().item()
    assert set(mask.unique().tolist()) == {0, 1}
    assert abs(dropped - 0.1) < 5 * (0.1 * 0.9 / mask.numel()) ** 0.5  # five standard deviations
    assert draw_mask(q, 0).all()
    torch.manual_seed(7)
    first, second = draw_mask(q, LEVELS // 2), draw_mask(q, LEVELS // 2)
    torch.manual_seed(7)
    assert torch.equal(first, draw_mask(q, LEVELS // 2))
    same = (first == second).double().mean().item()
    assert abs(same - 0.5) < 5 * 0.5 / mask.numel() ** 0.5  # draws, samples and calls are independent
    assert abs((first[0] == first[1]).double().mean().item() - 0.5) < 5 * 0.5 / first[0].numel() ** 0.5


def test_attention_with_dropout_is_unbiased() -> None:
    q, k, v = (t.detach() for t in qkv(1, 1, 6, 4))
    many = [t.expand(20_000, -1, -1, -1) for t in (q, k, v)]
    expected = F.scaled_dot_product_attention(q, k, v)
    dropped = attention(*many, 0.3)
    # a kept weight w·v/0.7 has variance (w·v)²·0.3/0.7; six standard errors of the mean
    bound = 6 * ((0.3 / 0.7) * (v.abs().max() ** 2) / 20_000) ** 0.5
    assert (dropped.mean(0) - expected[0]).abs().max() < bound
    assert dropped.std(0).min() > 0.01


def test_encoder_is_pytorchs() -> None:
    """In eval mode, with and without gradients, and in training without dropout."""
    plain = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 64, 0.1, activation="gelu", batch_first=True), 2, enable_nested_tensor=False
    )
    ours = nn.TransformerEncoder(EncoderLayer(16, 2, 64, 0.1), 2, enable_nested_tensor=False)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(3, 20, 16)
    plain.eval()
    ours.eval()
    torch.testing.assert_close(ours(x), plain(x))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x))
    ours.train()
    torch.manual_seed(0)
    first = ours(x)
    assert not torch.equal(first, ours(x))
    torch.manual_seed(0)
    torch.testing.assert_close(ours(x), first, rtol=0, atol=0)
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    torch.testing.assert_close(ours(x), plain(x))
    with pytest.raises(ValueError, match="no masks"):
        ours(x, mask=torch.zeros(20, 20))


def test_encoder_by_rows_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As compiled for CUDA, but for layers in which somebody has replaced something."""
    layer, x = EncoderLayer(16, 2, 64, 0.3), torch.randn(3, 20, 16)
    shapes: list[torch.Size] = []
    expected = []
    for by_rows in (False, True):
        if by_rows:
            monkeypatch.setattr(encoder, "compiles_for_cuda", lambda x: True)
            layer.linear2.register_forward_hook(lambda _, args, out: shapes.append(out.shape))
            layer.eval()
            out = layer(x)
            assert shapes.pop() == (3, 20, 16)  # hooked
            layer.linear2._forward_hooks.clear()
            layer.train()
        torch.manual_seed(0)
        out = layer(x)
        assert out.shape == x.shape
        expected.append([out.detach(), *torch.autograd.grad(out.square().sum(), list(layer.parameters()))])
    for one, other in zip(*expected, strict=True):
        torch.testing.assert_close(one, other)


def test_encoder_layer_in_bfloat16() -> None:
    layer, x = EncoderLayer(16, 2, 64, 0.1), torch.randn(3, 20, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    half = layer.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16


def test_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    agent, (x, y) = small_agent(), windows()
    agent(x, y)
    agent.eval()(x, y)
    assert not [str(w.message) for w in recwarn]
