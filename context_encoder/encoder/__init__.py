"""Features of trained encoders, and exchange of their weights with other programs.

::

    from context_encoder.encoder import extract_features, load_backbone
    features = extract_features(load_backbone("runs/first"), list_images("photos"), ["conv3"])
    features.values["conv3"]  # one row per image in features.files
"""

from context_encoder.encoder.backbone import layer_names, load_backbone, weights_digest
from context_encoder.encoder.extract import (
    PIXELS,
    FeatureError,
    Features,
    average_to_grid,
    encode_batch,
    extract_features,
)
from context_encoder.encoder.weights import (
    ImportReport,
    WeightsError,
    export_encoder,
    import_encoder,
    load_encoder,
    read_weights,
    take_own_pictures,
)

__all__ = [
    "PIXELS",
    "FeatureError",
    "Features",
    "ImportReport",
    "WeightsError",
    "average_to_grid",
    "encode_batch",
    "export_encoder",
    "extract_features",
    "import_encoder",
    "layer_names",
    "load_backbone",
    "load_encoder",
    "read_weights",
    "take_own_pictures",
    "weights_digest",
]
