"""The page of examples/space: what becomes of an image, and the page itself in a browser."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hub.server import Hub
from PIL import Image
from plotting import plot_prediction
from predictions import as_pixels, crop_drawing, draw_networks, predict, should_invert
from wording import criteria_text, networks_text, prediction_text, verdict_text

from pdiff_hf import PDiffPipeline, load_images
from pdiff_hf.data.preprocessing import Preprocessing
from pdiff_hf.hub.safety import BrokenFileError

if TYPE_CHECKING:
    from space_browser import Space

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
LIGHT_ON_DARK = Preprocessing(image_size=8, mean=(0.3,), std=(0.4,))


@pytest.fixture(scope="module")
def digit() -> Image.Image:
    """A digit, light on dark, 8 x 8."""
    return Image.fromarray(load_images("digits", image_size=8).test.pixels[0, 0].numpy())


@pytest.fixture(scope="module")
def pipe() -> PDiffPipeline:
    return PDiffPipeline.from_pretrained(GOLDEN / "pipeline")


@pytest.fixture(scope="module")
def conditional() -> PDiffPipeline:
    return PDiffPipeline.from_pretrained(GOLDEN / "conditional")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
@pytest.mark.parametrize("size", [(8, 8), (100, 30), (3, 700)])
def test_image_of_any_mode_and_size_fits_networks_of_gray_or_color(mode: str, size: tuple[int, int]):
    image = Image.new("L", size, 255).convert(mode) if mode != "I;16" else Image.new(mode, size, 65535)

    assert as_pixels(image, LIGHT_ON_DARK, 1).tolist() == [[[[255] * 8] * 8]]
    assert as_pixels(image, LIGHT_ON_DARK, 3).tolist() == [[[[255] * 8] * 8] * 3]


def test_image_of_the_networks_size_stays_as_it_is(digit: Image.Image):
    pixels = load_images("digits", image_size=8).test.pixels[:1]

    assert torch.equal(as_pixels(digit, LIGHT_ON_DARK, 1), pixels)
    assert torch.equal(as_pixels(digit.convert("RGB"), LIGHT_ON_DARK, 1), pixels)


@pytest.mark.parametrize(("mean", "inverts_dark", "inverts_light"), [(0.3, False, True), (0.7, True, False)])
def test_gray_image_is_inverted_if_its_border_is_unlike_that_of_training_images(
    digit: Image.Image, mean: float, inverts_dark: bool, inverts_light: bool
):
    preprocessing = Preprocessing(image_size=8, mean=(mean,), std=(0.4,))
    light_on_dark = as_pixels(digit, preprocessing, 1)

    assert should_invert(light_on_dark, preprocessing) == inverts_dark
    assert should_invert(255 - light_on_dark, preprocessing) == inverts_light


def test_image_of_color_is_not_inverted(digit: Image.Image):
    preprocessing = Preprocessing(image_size=8, mean=(0.3,) * 3, std=(0.4,) * 3)

    assert not should_invert(255 - as_pixels(digit, preprocessing, 3), preprocessing)


def test_drawing_is_cropped_to_the_square_around_its_lines():
    drawing = Image.new("RGBA", (320, 320), (0, 0, 0, 0))  # transparent, as an empty canvas is
    assert crop_drawing(drawing) is None
    drawing.paste("black", (200, 40, 220, 140))

    cropped = crop_drawing(drawing)

    assert cropped.size == (100, 100)
    assert cropped.getpixel((50, 50)) == 0
    assert cropped.getpixel((10, 50)) == 255


def test_dark_drawing_is_predicted_as_the_light_digit_it_shows(pipe: PDiffPipeline, digit: Image.Image):
    out = draw_networks(pipe, 4, seed=0)
    negative = Image.eval(digit, lambda value: 255 - value)

    shown, expected = predict(out, negative), predict(out, digit)

    assert shown.inverted
    assert not expected.inverted
    assert torch.equal(shown.probabilities, expected.probabilities)
    assert torch.allclose(expected.probabilities.mean(0), expected.ensemble.probabilities[0], atol=1e-6)
    assert not torch.equal(predict(out, negative, "never").probabilities, expected.probabilities)


def test_more_networks_of_a_seed_begin_with_the_same_ones(pipe: PDiffPipeline):
    few, many = draw_networks(pipe, 2, seed=3), draw_networks(pipe, 5, seed=3)

    assert torch.allclose(many.parameters[:2], few.parameters, atol=1e-5)
    assert not torch.allclose(draw_networks(pipe, 2, seed=9).parameters, few.parameters, atol=1e-3)


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (51, 0), (1, -1), (1, None)])
def test_number_of_networks_and_seed_are_limited(pipe: PDiffPipeline, count: int, seed: int | None):
    with pytest.raises(ValueError, match=r"can be drawn here|The seed must be"):
        draw_networks(pipe, count, seed)


@pytest.mark.parametrize(("condition", "named"), [(["b"], "b"), ([], "none of them"), (["a", "c"], "a, c")])
def test_networks_are_drawn_for_ticked_classes(conditional: PDiffPipeline, condition: list[str], named: str):
    out = draw_networks(conditional, 2, 0, condition, guidance_scale=2.0, autoguidance_scale=0.5)

    assert f"Condition: **{named}**" in networks_text(out, conditional)


def test_words_and_figure_name_answers_agreement_and_uncertainty(pipe: PDiffPipeline, digit: Image.Image):
    prediction = predict(draw_networks(pipe, 3, 0), digit)

    words, figure = prediction_text(prediction), plot_prediction(prediction)

    assert prediction.classes[prediction.ensemble.probabilities[0].argmax()] in words
    assert f"{prediction.agreement} of 3 networks" in words
    assert f"{prediction.ensemble.entropy.item():.2f} of at most 2.30 nats" in words
    rows = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert {"network 1", "network 2", "network 3"} <= set(rows)


def test_class_names_of_a_repository_are_drawn_as_plain_text(pipe: PDiffPipeline, digit: Image.Image):
    prediction = predict(draw_networks(pipe, 1, 0), digit)
    prediction.classes[:] = [r"$\frac{$"] * 10

    plot_prediction(prediction).canvas.draw()


def test_damaged_audit_is_one_sentence(pipe: PDiffPipeline):
    assert verdict_text(pipe) == "It has not been audited; `pdiff-hf audit` does it."
    assert criteria_text(pipe) == ""
    damaged = PDiffPipeline.from_pretrained(GOLDEN / "pipeline")
    damaged.metrics = {"sets": {}, "verdict": []}
    with pytest.raises(BrokenFileError, match="audit's verdict cannot be built"):
        verdict_text(damaged)


@pytest.mark.parametrize(
    ("preprocessing", "sentence"),
    [
        ({"size": 9}, "do not take what their preprocessing makes"),
        ({"size": 10**6}, "take up to 1024 pixels, not 1000000"),
        ({"image_mean": "dark"}, "preprocessing of these networks cannot be built"),
        ({"image_mean": [0.3, 0.3]}, "do not take what"),
    ],
)
def test_images_that_networks_do_not_take_are_refused(
    pipe: PDiffPipeline, digit: Image.Image, preprocessing: dict, sentence: str
):
    networks = draw_networks(pipe, 1, 0)
    networks.preprocessing = networks.preprocessing | preprocessing

    with pytest.raises(ValueError, match=sentence):
        predict(networks, digit)


def test_space_requires_what_the_package_does():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.findall(r'"(.*)"', re.search(r"\ndependencies = \[\n(.*?)\n\]", project, re.DOTALL)[1])
    lines = (ROOT / "examples/space/requirements.txt").read_text(encoding="utf-8").splitlines()

    assert [line for line in lines if not line.startswith("#")] == dependencies


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of the running app, which begins with an unconditional generator."""
    for module in ("gradio", "selenium"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}")
    from space_browser import running_space

    with running_space(GOLDEN / "pipeline") as running:
        yield running


@pytest.fixture
def space(address: str) -> Iterator[Space]:
    """The page in a browser, with ten networks drawn."""
    from space_browser import Space, open_browser

    with open_browser() as driver:
        driver.get(address)
        page = Space(driver)
        page.text("drawn", "Drawn: 10 networks with 90 generated parameters")
        yield page


def test_page_classifies_a_drawing_and_an_upload(space: Space, digit: Image.Image, tmp_path: Path):
    space.draw_nine()
    drawn = space.text("prediction", "of 10 networks")
    assert "The image was inverted." in drawn
    figure = space.plot()

    digit.save(tmp_path / "digit.png")
    space.click("button[role=tab]:nth-of-type(2)")
    space.find("#upload input[type=file]").send_keys(str(tmp_path / "digit.png"))
    space.wait(lambda: space.plot() != figure)

    expected = predict(draw_networks(PDiffPipeline.from_pretrained(GOLDEN / "pipeline"), 10, 0), digit)
    assert "The image was inverted." not in space.text("prediction", f"{expected.agreement} of 10 networks")


def test_page_draws_networks_for_ticked_classes_and_with_guidance(space: Space):
    space.load(GOLDEN / "conditional")
    space.text("drawn", "Condition: none of them")
    space.draw_nine()
    space.text("prediction", "The ensemble predicts")
    figure = space.plot()

    for name in "bc":
        space.click(f".condition input[name={name}]")
    space.click("#draw")
    space.text("drawn", "Condition: b, c.")
    space.wait(lambda: space.plot() != figure)

    figure = space.plot()
    space.enter("#guidance input[type=number]", "4")
    space.click("#draw")
    space.wait(lambda: space.plot() != figure)


def test_page_shows_errors_as_sentences(space: Space, session_hub: Hub, tmp_path: Path):
    hostile = shutil.copytree(GOLDEN / "pipeline", tmp_path / "hostile")
    index = json.loads((hostile / "model_index.json").read_text())
    (hostile / "model_index.json").write_text(json.dumps(index | {"autoencoder": ["os", "system"]}))
    shares = shutil.copytree(GOLDEN / "conditional", tmp_path / "shares")
    index = json.loads((shares / "model_index.json").read_text())
    conditions = {"kind": "simplex", "names": ["a", "b", "c"], "complement": False, "trained": [[0.2, 0.3, 0.5]]}
    (shares / "model_index.json").write_text(json.dumps(index | {"conditions": conditions}))

    for name, sentence in (("alice/none", "alice/none"), (hostile, "os.system"), ("", "Enter a Hub id")):
        space.load(name)
        assert "Traceback" not in space.error(sentence)
    space.load(shares)
    space.text("drawn", "a = 0.2, b = 0.3, c = 0.5")
    space.enter(".condition input[aria-label=a]", "0.9")
    space.click("#draw")
    space.error("each at least 0, with sum 1")
