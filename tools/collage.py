"""The picture of README and docs: the demo photographs with their labels and the probabilities of all eight emotions.

.venv/bin/python tools/collage.py docs/demo.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from fer_ray import LabeledImage, Labeler
from fer_ray.data import demo_photos
from fer_ray.emotions import EMOTION_COLORS

PHOTOGRAPHS = ("grace_hopper", "astronaut", "camera")
SIDE = 420  # pixels of a photograph's square
GAP = 24
BAR_ROW = 27  # pixels of a line of the bars
BAR_LEFT = 108  # room for the emotion's name
PAPER = "#ffffff"
INK = "#1f2933"
TRACK = "#eef1f4"


def main(target: Path) -> None:
    paths = {Path(entry.image_uri).stem: entry.image_uri for entry in demo_photos.images()}
    images = Labeler().label([paths[name] for name in PHOTOGRAPHS])
    rows = len(images[0].faces[0].probabilities)
    sheet = Image.new("RGB", (GAP + len(images) * (SIDE + GAP), 3 * GAP + SIDE + rows * BAR_ROW), PAPER)
    for place, image in enumerate(images):
        left = GAP + place * (SIDE + GAP)
        sheet.paste(ImageOps.fit(_around_the_face(image), (SIDE, SIDE)), (left, GAP))
        _bars(ImageDraw.Draw(sheet), image, left, 2 * GAP + SIDE)
    sheet.save(target, quality=88)


def _around_the_face(image: LabeledImage) -> Image.Image:
    """The part of the photograph around its largest face, label and all."""
    drawn = image.draw()
    x, y, width, height = image.faces[0].bbox
    side = min(2.6 * max(width, height), *drawn.size)
    left = min(max(0, x + width / 2 - side / 2), drawn.width - side)
    top = min(max(0, y + height / 2 - side / 2), drawn.height - side)
    return drawn.crop((round(left), round(top), round(left + side), round(top + side)))


def _bars(draw: ImageDraw.ImageDraw, image: LabeledImage, left: int, top: int) -> None:
    font = ImageFont.load_default(18)
    for place, (emotion, probability) in enumerate(image.faces[0].probabilities.items()):
        y, right = top + place * BAR_ROW, left + SIDE
        draw.text((left, y + 10), emotion, font=font, fill=INK, anchor="lm")
        draw.rectangle((left + BAR_LEFT, y + 2, right, y + 18), fill=TRACK)
        end = left + BAR_LEFT + probability * (SIDE - BAR_LEFT)
        draw.rectangle((left + BAR_LEFT, y + 2, max(end, left + BAR_LEFT + 2), y + 18), fill=EMOTION_COLORS[emotion])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
