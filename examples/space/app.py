"""A page to draw networks from a generator and watch them classify a drawing: `python app.py path/or/id`."""

from __future__ import annotations

import functools
import html
import os
import sys
from collections.abc import Callable
from typing import Any

import gradio as gr
from PIL import Image
from plotting import plot_prediction
from predictions import MOST_NETWORKS, Inverting, crop_drawing, draw_networks, predict
from wording import criteria_text, generator_text, networks_text, prediction_text, verdict_text

from pdiff_hf import DrawnNetworks, PDiffPipeline

PRESET = "PDIFF_GENERATOR"  # environment variable with the generator to begin with
CANVAS = 320  # pixels
INTRODUCTION = """# Draw neural networks from noise
A *generator* is a diffusion model whose samples are not images but the **parameters of neural networks**. Draw a few
networks, which nobody trained, and watch them classify what you draw: each is a working network of its own, and where
they contradict each other, the answer is uncertain."""
DRAW_FIRST = "Draw networks first, in step 1."


def in_a_sentence(handler: Callable) -> Callable:
    """Shows an error that the user can do something about as its sentence."""

    @functools.wraps(handler)
    def handle(*arguments: Any) -> Any:
        try:
            return handler(*arguments)
        except (OSError, ValueError) as error:
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error

    return handle


@in_a_sentence
def choose(name: str) -> list[Any]:
    """Loads a generator: the pipeline, what is stated of it, its settings, and a condition of its zoo."""
    if not name.strip():
        raise ValueError("Enter a Hub id such as org/name, or a folder.")
    pipe = PDiffPipeline.from_pretrained(name.strip())
    pipe.set_progress_bar_config(disable=True)
    known, config = pipe.conditions, pipe.config
    return [
        pipe,
        f"{generator_text(pipe)} {verdict_text(pipe)}",
        criteria_text(pipe),
        gr.Slider(value=config.default_autoguidance_scale, visible=pipe.guide is not None),
        gr.Slider(value=config.get("default_guidance_scale", 1.0), visible=known is not None),
        None if known is None else first_condition(known),
    ]


def first_condition(known: Any) -> list[Any]:
    """Returns the first condition of a zoo: its numbers, of bits the names that are 1."""
    values = known.trained[0].tolist()
    if known.meaning.kind != "bits":
        return values
    return [name for name, bit in zip(known.meaning.names, values, strict=True) if bit]


@in_a_sentence
def draw(pipe: PDiffPipeline | None, condition: Any, *settings: Any) -> list[Any]:
    """Draws networks: the networks, and what is stated of them."""
    if pipe is None:
        raise ValueError("Load a generator first.")
    count, seed, temperature, guidance, autoguidance = settings
    networks = draw_networks(pipe, count, seed, condition, temperature, guidance, autoguidance)
    return [networks, networks_text(networks, pipe)]


@in_a_sentence
def show(networks: DrawnNetworks | None, image: Image.Image | None, inverting: Inverting) -> list[Any]:
    """Predicts: words and a figure."""
    if networks is None or image is None:
        return [DRAW_FIRST if networks is None else "Draw a digit or upload an image, in step 2.", None]
    prediction = predict(networks, image, inverting)
    return [prediction_text(prediction), plot_prediction(prediction)]


@in_a_sentence
def take_drawing(layers: dict[str, Any] | None) -> Image.Image | None:
    """Returns what is drawn on the canvas, cropped to its lines; None if nothing is."""
    return None if layers is None or layers["composite"] is None else crop_drawing(layers["composite"])


def condition_fields(pipe: PDiffPipeline | None, condition: gr.State) -> None:
    """Adds a field for each number of a condition, or a box to tick for each bit, which set the state."""
    if pipe is None or pipe.conditions is None:
        return
    meaning, first = pipe.conditions.meaning, first_condition(pipe.conditions)
    if meaning.kind == "bits":
        title = "Condition: what the networks are for"
        boxes = gr.CheckboxGroup(
            list(meaning.names), value=first, label=title, interactive=True, elem_classes="condition"
        )
        boxes.change(lambda chosen: chosen, boxes, condition)
        return
    title = "shares that sum to 1" if meaning.kind == "simplex" else "numbers"
    gr.Markdown(f"Condition: {title}")
    with gr.Row(elem_classes="condition"):
        fields = [
            gr.Number(value, label=name, min_width=90, interactive=True)
            for name, value in zip(meaning.names, first, strict=True)
        ]
    gr.on([field.change for field in fields], lambda *values: list(values), fields, condition)


def drawing_fields(chosen: gr.State, condition: gr.State) -> tuple[list[Any], gr.Button, gr.Markdown]:
    """Adds the fields of step 1: what `draw` takes, the button, and a place for what was drawn."""
    gr.Markdown("## 1. Draw networks")
    gr.render(inputs=chosen)(lambda pipe: condition_fields(pipe, condition))
    with gr.Row():
        count = gr.Slider(1, MOST_NETWORKS, 10, step=1, label="Networks")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    temperature = gr.Slider(0, 1.5, 1, step=0.05, label="Temperature", info="diversity; 1 is as trained")
    guidance = gr.Slider(
        0,
        5,
        1,
        step=0.1,
        label="Guidance",
        info="how strictly the condition is followed",
        elem_id="guidance",
        visible=False,
    )
    autoguidance = gr.Slider(
        0, 3, 0, step=0.1, label="Autoguidance", info="away from a worse generator", visible=False
    )
    button = gr.Button("Draw networks", variant="primary", elem_id="draw")
    drawn = gr.Markdown(elem_id="drawn")
    return [count, seed, temperature, guidance, autoguidance], button, drawn


def image_fields() -> tuple[gr.Sketchpad, gr.Image, gr.Radio]:
    """Adds the fields of step 2."""
    gr.Markdown("## 2. Give them an image")
    with gr.Tab("Draw"):
        canvas = gr.Sketchpad(
            type="pil",
            canvas_size=(CANVAS, CANVAS),
            fixed_canvas=True,
            brush=gr.Brush(default_size=CANVAS // 12, colors=["#000000"], color_mode="fixed"),
            layers=False,
            transforms=(),
            label="Pick the brush on the left",
            elem_id="canvas",
        )
    with gr.Tab("Upload"):
        upload = gr.Image(type="pil", image_mode=None, sources=["upload", "clipboard"], elem_id="upload")
    inverting = gr.Radio(
        ["automatic", "never", "always"],
        value="automatic",
        label="Invert the image",
        info="automatic: a gray image whose border is bright, if training images are dark, or the reverse",
    )
    return canvas, upload, inverting


def build(preset: str) -> gr.Blocks:
    """Returns the page; it begins with the generator `preset`, if that is not empty."""
    with gr.Blocks(title="Draw neural networks from noise") as page:
        chosen, networks, image, condition = gr.State(), gr.State(), gr.State(), gr.State()
        gr.Markdown(INTRODUCTION)
        with gr.Row(equal_height=True):
            name = gr.Textbox(preset, label="Generator", placeholder="Hub id or folder", scale=4, elem_id="generator")
            load = gr.Button("Load", scale=1, elem_id="load")
        about = gr.Markdown()
        with gr.Row():
            with gr.Column(scale=2, min_width=360):
                settings, button, drawn = drawing_fields(chosen, condition)
                canvas, upload, inverting = image_fields()
            with gr.Column(scale=3, min_width=480):
                gr.Markdown("## 3. What they predict")
                words = gr.Markdown(DRAW_FIRST, elem_id="prediction")
                plot = gr.Plot(show_label=False, elem_id="plot")
                with gr.Accordion("Audit of this generator: criteria", open=False):
                    criteria = gr.Markdown()

        _, _, temperature, guidance, autoguidance = settings
        loading = (choose, name, [chosen, about, criteria, autoguidance, guidance, condition])
        drawing = (draw, [chosen, condition, *settings], [networks, drawn])
        predicting = (show, [networks, image, inverting], [words, plot])
        for event in (load.click, name.submit, *([page.load] if preset else [])):
            event(*loading).success(*drawing).success(*predicting)
        redraw = [button.click, *(slider.release for slider in (settings[0], temperature, guidance, autoguidance))]
        gr.on(redraw, *drawing).success(*predicting)
        canvas.change(take_drawing, canvas, image).success(*predicting)
        upload.change(lambda given: given, upload, image).success(*predicting)
        inverting.change(*predicting)
    return page


if __name__ == "__main__":
    build(sys.argv[1] if len(sys.argv) > 1 else os.environ.get(PRESET, "")).launch(
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]), max_file_size="20mb"
    )
