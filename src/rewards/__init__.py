"""Reward experts: pluggable, torchmetrics-style modules that score images against prompts."""

# What `rewards.experts.<name>._target_` may name (src/factories.py).
FACTORIES = (
    "src.rewards.aesthetic.Aesthetic",
    "src.rewards.clip_score.ClipScore",
    "src.rewards.detector.Detector",
    "src.rewards.git_vqa.GitVqa",
    "src.rewards.hps.HPS",
    "src.rewards.orm.ORM",
    "src.rewards.shapes_judge.ShapesJudge",
    "src.rewards.vlm_judge.VLMJudge",
)
# Settings of an expert that may have a `_target_` of their own, and the only one they may have.
NESTED = {"sizes": "src.rewards.clip_layout.ClipSizes"}
