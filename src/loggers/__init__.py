"""Loggers besides metrics.csv: MLflow (in a separate process) and Lightning's own."""

# What `logger._target_` may name (src/config/factories.py): ours, and those of Lightning.
FACTORIES = (
    "src.loggers.mlflow_logger.MLflowLogger",
    *(
        f"lightning.pytorch.loggers.{name}"
        for name in ("CSVLogger", "CometLogger", "LitLogger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger")
    ),
)
