"""The numbers and images of an explanation, against the same formulas written out; the page that shows them."""

import base64
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dgunet import explanation_page
from dgunet.__main__ import main
from dgunet.checkpoint import save_model
from dgunet.config import LocalStatistics
from dgunet.explanation import explain
from dgunet.images import Photo, read_photo, to_float, write_photo
from dgunet.inference import estimates
from dgunet.network import DGUNet, DGUNetConfig
from dgunet.tensors import to_tensor

SMALL = {"width": 4, "growth": 2, "head_growth": 2}
BLIND = DGUNetConfig(**SMALL, num_stages=4, share_stages=True)
SENSING = DGUNetConfig(**SMALL, num_stages=3, image_channels=1, sensing_ratio_percent=10)


def network(config: DGUNetConfig) -> DGUNet:
    """A network whose stages do something that can be seen."""
    model = DGUNet.with_seed(config, 0).eval()
    with torch.no_grad():
        for number, stage in enumerate(model.stages()):
            stage.gradient.step_size.fill_(0.3 + 0.1 * number)
        for stage in (model.first, *model.between):
            stage.proximal.end.correct.weight.mul_(20)
    return model


def image(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, channels), dtype=np.float32)


def rms(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def psnr(estimate: np.ndarray, clean: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(estimate.astype(float) - clean).mean()))


@pytest.mark.parametrize("local", [None, LocalStatistics(96, ("norm",))])
def test_a_blind_network(local):
    model = network(BLIND)
    model.local_statistics = local
    degraded, clean = image(40, 48, 3), image(40, 48, 3, seed=1)
    explanation = explain(model, degraded, clean)
    y = to_tensor(degraded)
    with torch.inference_mode():
        wanted = estimates(model, y)
        previous = y
        for stage, shown, estimate in zip(model.stages(), explanation.stages, wanted, strict=True):
            learned, step_size = stage.gradient.learned, float(stage.gradient.step_size)
            gradient_step = previous - step_size * learned.adjoint(learned.degrade(previous) - y)
            as_tensors = [to_tensor(array) for array in (shown.estimate, shown.gradient_step, shown.degraded_again)]
            torch.testing.assert_close(as_tensors[0], estimate)
            torch.testing.assert_close(as_tensors[1], gradient_step)
            torch.testing.assert_close(as_tensors[2], learned.degrade(estimate))
            torch.testing.assert_close(to_tensor(shown.gradient_change), gradient_step - previous)
            torch.testing.assert_close(to_tensor(shown.proximal_change), estimate - gradient_step)
            residuals = [rms(learned.degrade(x) - y) for x in (previous, gradient_step, estimate)]
            assert [shown.residual_before, shown.residual_after_gradient, shown.residual] == pytest.approx(residuals)
            assert shown.step_size == pytest.approx(step_size)
            assert shown.psnr == pytest.approx(psnr(shown.estimate, clean))
            assert shown.gradient_psnr == pytest.approx(psnr(shown.gradient_step, clean))
            previous = estimate
    assert explanation.start_psnr == pytest.approx(psnr(degraded, clean))
    assert explanation.change.max() == pytest.approx(np.abs(explanation.stages[-1].estimate - degraded).max())


@pytest.mark.parametrize("full_image", [True, False])
def test_a_sensing_network(full_image):
    model = network(DGUNetConfig(**{**vars(SENSING), "full_image": full_image}))
    photo = image(64, 96, 1)
    explanation = explain(model, photo)
    measured = model.sense(to_tensor(photo)).values
    with torch.inference_mode():
        previous = model.sensing.adjoint(measured)
        torch.testing.assert_close(to_tensor(explanation.start), previous)
        for stage, shown, estimate in zip(
            model.stages(), explanation.stages, model(model.sense(to_tensor(photo))), strict=True
        ):
            difference = model.sensing.degrade(previous) - measured
            gradient_step = previous - float(stage.gradient.step_size) * model.sensing.adjoint(difference)
            torch.testing.assert_close(to_tensor(shown.gradient_step), gradient_step, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(to_tensor(shown.estimate), estimate, atol=1e-5, rtol=1e-4)
            residuals = [rms(model.sensing.degrade(x) - measured) for x in (previous, gradient_step, estimate)]
            found = [shown.residual_before, shown.residual_after_gradient, shown.residual]
            assert found == pytest.approx(residuals, rel=1e-3, abs=1e-6)
            assert shown.degraded_again is None
            assert shown.psnr == pytest.approx(psnr(shown.estimate, photo))
            previous = estimate


def test_odd_sizes_and_wrong_shapes():
    model = network(BLIND)
    assert explain(model, image(17, 3, 3)).stages[-1].estimate.shape == (17, 3, 3)
    assert explain(network(SENSING), image(33, 40, 1)).stages[0].gradient_step.shape == (33, 40, 1)
    with pytest.raises(ValueError, match="the image has 1 channels, the network 3"):
        explain(model, image(16, 16, 1))
    with pytest.raises(ValueError, match="the clean image has shape"):
        explain(model, image(16, 16, 3), image(16, 17, 3))


def test_no_hook_stays_on_the_network():
    model = network(BLIND)
    explain(model, image(16, 16, 3))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """A model, a photo and the clean photo."""
    monkeypatch.chdir(tmp_path)
    save_model(network(BLIND), tmp_path / "model", {})
    for name, seed in (("photo.png", 0), ("clean.png", 1)):
        write_photo(name, Photo((255 * image(24, 40, 3, seed)).astype(np.uint8)))
    return tmp_path


def test_the_page_is_one_file_with_the_numbers(files, capsys):
    assert main(["explain", "photo.png", "--clean", "clean.png", "--model", "model"]) == 0
    page = Path("photo.explain.html").read_text()
    assert "photo.explain.html: 4 stages" in capsys.readouterr().out
    degraded, clean = (to_float(read_photo(name).pixels) for name in ("photo.png", "clean.png"))
    explanation = explain(network(BLIND), degraded, clean)
    for stage in explanation.stages:
        assert f"step size ρ = {stage.step_size:.3f}" in page
        assert f"{255 * stage.residual_after_gradient:.2f} after it, {255 * stage.residual:.2f} at the end" in page
        assert f"{stage.gradient_psnr:.2f} dB after the gradient step, {stage.psnr:.2f} dB at the end" in page
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', page)) == {"data:"}
    assert "http" not in page.replace("http-equiv", "")
    images = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(images) == 4 + 4 * 5
    restored = cv2.imdecode(np.frombuffer(base64.b64decode(images[1]), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    shown, wanted = (cv2.blur(array, (8, 8)) for array in (restored / 255, explanation.stages[-1].estimate.clip(0, 1)))
    assert np.abs(shown - wanted)[8:-8, 8:-8].mean() < 0.02  # JPEG of noise: means over 8x8 pixels


def test_a_part_of_a_photo(files, capsys):
    assert main(["explain", "photo.png", "--model", "model", "--crop", "8,4,16", "--out", "new/part.html"]) == 0
    page = Path("new/part.html").read_text()
    assert "The part from (8, 4) of 16x16 pixels, of 40x24." in page
    assert 'width="16" height="16"' in page
    assert "PSNR" not in page
    assert main(["explain", "photo.png", "--model", "model", "--crop", "40,0,16"]) == 2
    assert "outside photo.png, which has 40x24 pixels" in capsys.readouterr().err


def test_a_large_photo_is_explained_in_its_middle(files, monkeypatch):
    monkeypatch.setattr(explanation_page, "MAX_PIXELS", 10_000)
    monkeypatch.setattr(explanation_page, "SIDE", 72)
    for name, width, says in (
        ("large", 101, "The part from (14, 14) of 72x72 pixels, of 101x100."),
        ("whole", 100, ""),
    ):
        write_photo(f"{name}.png", Photo(np.zeros((100, width, 3), np.uint8)))
        assert main(["explain", f"{name}.png", "--model", "model"]) == 0
        page = Path(f"{name}.explain.html").read_text()
        assert says in page
        assert ("The part from" in page) == bool(says)


def test_mistakes_are_refused_and_write_nothing(files, capsys):
    before = sorted(files.iterdir())
    write = ["explain", "photo.png", "--model", "model"]
    assert main([*write, "--out", "page.png"]) == 2
    assert main([*write, "--clean", "none.png"]) == 1
    small = files / "small.png"
    write_photo(small, Photo(np.zeros((8, 8, 3), np.uint8)))
    assert main([*write, "--clean", "small.png"]) == 1
    errors = capsys.readouterr().err
    assert "--out page.png: give the name of a page, such as page.html" in errors
    assert "small.png: has 8x8 pixels, photo.png has 40x24" in errors
    small.unlink()
    assert sorted(files.iterdir()) == before
