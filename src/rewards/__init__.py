"""Reward experts: pluggable, torchmetrics-style modules that score images against prompts."""

# What `rewards.experts.<name>._target_` may name (src/config/factories.py).
FACTORIES = (
    "src.rewards.experts.aesthetic.Aesthetic",
    "src.rewards.experts.clip_score.ClipScore",
    "src.rewards.experts.detector.Detector",
    "src.rewards.experts.git_vqa.GitVqa",
    "src.rewards.experts.hps.HPS",
    "src.rewards.experts.orm.ORM",
    "src.rewards.experts.shapes_judge.ShapesJudge",
    "src.rewards.experts.vlm_judge.VLMJudge",
)
# The settings of an expert that may have a `_target_`, and the only one allowed for each.
NESTED = {"sizes": "src.rewards.vision.clip_layout.ClipSizes"}
