"""How lmms-eval finds cdkit: the entry point `cdkit` of the group `lmms_eval.models`."""

from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

MANIFEST = ModelManifest(
    model_id="cdkit",
    # by name: lmms-eval reads every manifest at its start, long before a model is wanted
    simple_class_path="cdkit.evals.integrations.lmms_eval.lmms_model.Cdkit",
)
