"""The words GenEval's prompts are made of, as its released files spell them."""

from __future__ import annotations

# COCO's 80 classes in COCO's order, which is the order of the detector's logits. GenEval calls COCO's "mouse",
# "remote" and "keyboard" by two words each; the others are COCO's own.
OBJECTS: tuple[str, ...] = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush""".replace("\n    ", " ").split(", ")
)
COLORS: tuple[str, ...] = tuple("red orange yellow green blue purple pink brown black white".split())
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
