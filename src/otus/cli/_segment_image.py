"""``otus segment`` on one image: load the method for a prompt, segment, draw, and describe the result."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otus.cli._common import given_options
from otus.cli._options import PROMPTABLE_MODEL

if TYPE_CHECKING:
    import numpy as np

    from otus.structures import MaskCandidates, Prompt, PromptableMethod

    Methods = Callable[[Prompt], PromptableMethod[Any]]
    Parts = Mapping[int | None, Prompt]
    """Prompts of an image by the number of the object; the numbers of a prompt under None are its own."""


def methods_for(name: str | None, detector: str | None, **options: Any) -> "Methods":
    """Return a function from a prompt to the method for it; each method is loaded once."""

    @cache
    def load_method(method_name: str, *, with_detector: bool) -> "PromptableMethod[Any]":
        if not with_detector:
            return _load(method_name, **options)
        from otus.inference.detect_then_prompt import DetectThenPrompt
        from otus.inference.loading import load

        method = load_method(method_name, with_detector=False)
        return DetectThenPrompt(load(detector, **given_options(device=options["device"])), method)

    def method(prompt: "Prompt") -> "PromptableMethod[Any]":
        from otus.interactive.methods import default_method

        by_detector = prompt.text is not None and options["text_encoder"] is None
        needs_model = any(options[option] is not None for option in ("weights", "text_encoder", "zoom_in"))
        chosen = name or (PROMPTABLE_MODEL if needs_model else default_method(prompt))
        return load_method(chosen, with_detector=by_detector)

    return method


def _load(name: str, *, weights: str | None, text_encoder: str | None, **options: Any) -> "PromptableMethod[Any]":
    """Load a method; torch is imported only for models."""
    from otus.interactive.methods import METHODS, make_method

    if name in METHODS and weights is None and text_encoder is None and options["zoom_in"] is None:
        return make_method(name)
    from otus.inference.promptable import load_method

    return load_method(name, weights=weights, text_encoder=text_encoder, **given_options(**options))


def segment_image(
    image: "np.ndarray", name: str, parts: "Parts", methods: "Methods", *, all_: bool
) -> "tuple[dict[str, Any], MaskCandidates]":
    """Segment an image; return its document and its masks, all candidates or the best per object."""
    import time

    from otus.interactive.mask_files import candidate_records
    from otus.structures import MaskCandidates

    prompt = next(iter(parts.values()))
    method = methods(prompt)
    start = time.perf_counter()
    embedding = method.embed(image)
    embedded = time.perf_counter()
    found = []
    for number, part in parts.items():
        candidates = method.segment(embedding, part)
        candidates = candidates if all_ else candidates.best_of_each()
        found.append(candidates if number is None else candidates.numbered(number))
    candidates = MaskCandidates.concatenate(found, (image.shape[0], image.shape[1]))
    seconds = {"embed": embedded - start, "segment": time.perf_counter() - embedded}
    head = {"file": name, "width": image.shape[1], "height": image.shape[0], "method": method.name, "seconds": seconds}
    if prompt.text is not None:
        from otus.inference.detect_then_prompt import DetectThenPrompt

        answered_by = f"detector {method.detector.name}" if isinstance(method, DetectThenPrompt) else "text encoder"
        head["text"] = {"words": prompt.text, "answered_by": answered_by}
    return head | {"candidates": candidate_records(candidates)}, candidates


def draw(image: "np.ndarray", candidates: "MaskCandidates", out: Path) -> None:
    from otus.data.image_writing import write_image
    from otus.interactive.mask_files import as_instances
    from otus.visualization.drawing import overlay

    write_image(out, overlay(image, as_instances(candidates)))


def line(name: str, document: dict[str, Any]) -> str:
    """Return ``a.jpg 640x480: object 1 41,210 pixels, score 0.87 (graph-cut, 62 ms)``."""
    parts = [
        f"object {record['object']} {record['area']:,} pixels, score {record['score']:.2f}"
        for record in document["candidates"]
    ]
    text = document.get("text")
    if text is not None and not parts:
        parts = [f"found no {text['words']}, no masks"]
    milliseconds = 1000 * sum(document["seconds"].values())
    method = f"{document['method']}, {'' if text is None else text['answered_by'] + ', '}{milliseconds:.0f} ms"
    return f"{name} {document['width']}x{document['height']}: {'; '.join(parts)} ({method})"
